"""Make the chatterbot example: conversations as documents, a model fine-tuned on them, and the study.

    python examples/chatterbot/prepare.py DIR

The texts come from the PyPI package chatterbot-corpus (BSD), which is downloaded into DIR/packages and not installed.
The model is SmolLM2-135M-Instruct (Apache-2.0). Nothing is planted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.fine_tuning import BATCH, write_models
from examples.package_data import CHATTERBOT, conversations, fetch, short_ones
from examples.script_progress import Printed

from datablame.engine.files import write_atomic, write_table
from datablame.errors import DatablameError

__all__ = ["main", "write_study"]

CONVERSATIONS, EPOCHS, SOURCE = 300, 3, "chatterbot-corpus"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make everything that is not there yet, and print the command that runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="where everything goes")
    parser.add_argument("--packages", type=Path, help="a folder that holds the unpacked package; else: downloaded")
    parser.add_argument("--base", help="hub id, folder or GGUF file of another model")
    parser.add_argument("--seed", type=int, default=0, help="everything derives from it")
    given = parser.parse_args(arguments)
    try:
        if not (given.folder / "study.yaml").exists():
            where = given.packages or given.folder / "packages"
            talks = conversations(fetch(CHATTERBOT, where, download=given.packages is None))
            rows = [talk.document(SOURCE) for talk in short_ones(talks, CONVERSATIONS, given.seed)]
            write_table(given.folder / "documents.parquet", rows)
            write_models(given.folder, given.base, EPOCHS * -(-len(rows) // BATCH), given.seed, Printed())
            write_study(given.folder)
    except DatablameError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"datablame run {given.folder / 'study.yaml'} --out {given.folder / 'run'}")
    return 0


def write_study(folder: Path) -> None:
    """study.yaml: the settings beside this script, and where models and data lie."""
    settings: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "study.yaml").read_text(encoding="utf-8"))
    settings |= {
        "models": {"before": str(folder / "before"), "after": str(folder / "after")},
        "data": {"path": str(folder / "documents.parquet")},
    }
    write_atomic(folder / "study.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120))


if __name__ == "__main__":
    sys.exit(main())
