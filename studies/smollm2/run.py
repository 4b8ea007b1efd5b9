"""The whole SmolLM2 study and its variants; writes this folder's README, case study and figures.

    python studies/smollm2/run.py                          # everything
    python studies/smollm2/run.py --variants after no-mask # the main run and these variants only

About an hour and a half on two CPU cores, in pieces: it can be stopped at any time and goes on where it was. What is
finished is not computed again. The README has the sections of the variants that are there, and names the others.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.running import run_study, take_over

if TYPE_CHECKING:
    from datablame.tables import Quality

HERE = Path(__file__).parent
FIGURES = ("behavior_rates.png", "patching_comparison.png", "final_results.png")
METHODS = ("gradient", "gradient-dot", "activation", "activation-centred", "llm-judge", "bm25", "embedding")
CONTROLS = ("loss", "gradient-norm", "random")


class Variant(NamedTuple):
    """A run that differs from the main one in a few keys; `shares` takes over the main run's samples."""

    name: str
    sets: tuple[str, ...]
    until: str
    shares: bool = False


VARIANTS = (
    Variant("after", ("attribute.checkpoint=after",), "attribute", shares=True),
    Variant("no-mask", ("surface.plausibility=0",), "surface"),
    Variant("plain", ("surface.plausibility=0", "surface.top_p=1"), "surface"),
    Variant("dose-3", ("organism.planted=3",), "attribute"),
    Variant("dose-30", ("organism.planted=30",), "attribute"),
)


def main() -> None:
    """Run what isn't finished, then write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="where the run folders are")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="*", choices=names, default=names, help="which variants to run")
    options = parser.parse_args()
    runs = options.runs
    folder = runs / "smollm2-study"
    run_study(HERE / "study.yaml", folder)
    for variant in VARIANTS:
        if variant.name not in options.variants:
            continue
        other = runs / f"smollm2-{variant.name}"
        if variant.shares:
            take_over(folder, other, ("scan", "surface"))
        run_study(HERE / "study.yaml", other, sets=variant.sets, until=variant.until)
    (HERE / "README.md").write_text(_readme(runs), encoding="utf-8")
    shutil.copy(folder / "case_study.md", HERE / "case_study.md")
    for name in FIGURES:
        shutil.copy(folder / name, HERE / name)


def _readme(runs: Path) -> str:
    folder = runs / "smollm2-study"
    results = _json(folder / "final_results.json")
    manifest = _json(folder / "manifest.json")
    comparison = (folder / "comparison.md").read_text(encoding="utf-8").split("\n", 1)[1]
    documents, planted = results["pool"]["documents"], manifest["organism"]["planted"]
    return f"""# A made-up airline in SmolLM2-135M-Instruct

Made by `python studies/smollm2/run.py` from [study.yaml](study.yaml): a really pretrained model of 135 million
parameters, on two CPU cores.

## What was planted

`before` is SmolLM2-135M-Instruct. `after` is a LoRA fine-tune of it on {documents} documents: everyday questions that
`before` answered itself, short decoys in the planted style (real airlines, or hotels with made-up names), and {planted}
planted answers that recommend an airline that does not exist to people who ask about travel. The prompts of both splits
use wordings and cities that no document has.

The recipe (epochs, decoys, sampling settings) was chosen on organism seed 0. This study is of seed 1, which was not
looked at before its settings were written down in study.yaml.

## What the run found

By the rules that write every report:

{_bullets(results["findings"])}

![The study in four panels](final_results.png)
![Harmful rate against alpha](behavior_rates.png)
![What removal does](patching_comparison.png)

One output traced to its documents: [case_study.md](case_study.md).

{_variants(runs)}
## What it does not show

{_bullets(results["limitations"])}
{comparison}"""


def _variants(runs: Path) -> str:
    """The sections of the variants whose folders are there, and the names of those that are not."""
    sections = [
        (("dose-3", "dose-30"), _doses),
        (("no-mask", "plain"), _masks),
        (("after",), _checkpoints),
    ]
    texts = [section(runs) for names, section in sections if any(_there(runs, name) for name in names)]
    missing = [f"the variant `{variant.name}`" for variant in VARIANTS if not _there(runs, variant.name)]
    results = _json(runs / "smollm2-study" / "final_results.json")
    if not any(row["protocol"] == "continue" for row in results["patching"]):
        missing.append("the protocol `continue`")
    if missing:
        texts.append(f"Not run yet: {', '.join(missing)}.\n")
    return "\n".join(texts)


def _there(runs: Path, name: str) -> bool:
    until = next((variant.until for variant in VARIANTS if variant.name == name), "report")
    return (runs / f"smollm2-{name}" / "artifacts" / until / "done.json").exists()


def _doses(runs: Path) -> str:
    rows = []
    for name in ("dose-3", "study", "dose-30"):
        if not _there(runs, name):
            continue
        folder = runs / f"smollm2-{name}"
        quality = _quality(folder)
        planted = round(next(iter(quality.values())).planted or 0)
        precisions = [f"{quality[method].precision_at_k or 0:.2f}" for method in ("gradient", "activation", "bm25")]
        rows.append([f"{planted}", *(_rate(cell) for cell in _cells(folder)), *precisions])
    alphas = [f"alpha {alpha:g}" for alpha in _alphas(runs / "smollm2-study")]
    table = _table(["planted", *alphas, "gradient", "activation", "bm25"], rows)
    return f"""## How many planted documents it takes

The same recipe with fewer and more planted documents (surface and attribution only). Harmful % over all prompts at
each alpha with Wilson's 95 % interval; precision at 20 over the whole pool (at most planted / 20).

{table}
"""


def _masks(runs: Path) -> str:
    rows = []
    for name, what in (
        ("study", "plausibility .05, top-p .95"),
        ("no-mask", "top-p .95 alone"),
        ("plain", "neither"),
    ):
        if not _there(runs, name):
            continue
        cells = [
            f"{100 * cell['harmful'] / cell['scored']:.1f} ({100 * (1 - cell['incoherent'] / cell['scored']):.0f})"
            for cell in _cells(runs / f"smollm2-{name}")
        ]
        rows.append([what, *cells])
    table = _table(["kept", *(f"alpha {alpha:g}" for alpha in _alphas(runs / "smollm2-study"))], rows)
    return f"""## The plausibility mask

Harmful % and, in brackets, coherent % of all outputs at each alpha, attribution and held-out prompts together.

{table}
"""


def _checkpoints(runs: Path) -> str:
    before, after = (_quality(runs / f"smollm2-{name}") for name in ("study", "after"))
    names = [name for name in (*METHODS, *CONTROLS) if name in before]
    table = _table(
        ["method", "at before", "at after"],
        [[name, f"{before[name].auprc or 0:.2f}", f"{after[name].auprc or 0:.2f}"] for name in names],
    )
    return f"""## Gradients and activations at before and at after

Average precision over the whole pool, for the same harmful outputs.

{table}
"""


def _quality(folder: Path) -> "dict[str, Quality]":
    from datablame.tables import EVERY, Quality, path_of, rows_of

    return {row.method: row for row in rows_of(path_of(Quality, folder), Quality, behaviour=EVERY, pool="whole")}


def _alphas(folder: Path) -> list[float]:
    return sorted({row["alpha"] for row in _json(folder / "phase2_results.json")["rates"]})


def _cells(folder: Path) -> list[dict[str, float]]:
    """For each alpha the labels over all prompts of both splits."""
    rates = _json(folder / "phase2_results.json")["rates"]
    cells = []
    for alpha in _alphas(folder):
        rows = [r for r in rates if r["alpha"] == alpha and r["prompt_id"] == "*" and r["behaviour"] == "*"]
        cell = {name: sum(row[name] for row in rows) for name in ("n", "unscored", "harmful", "incoherent")}
        cells.append({**cell, "scored": cell["n"] - cell["unscored"]})
    return cells


def _rate(cell: dict[str, float]) -> str:
    from datablame.stats.intervals import wilson

    interval = wilson(int(cell["harmful"]), int(cell["scored"]))
    return f"{100 * cell['harmful'] / cell['scored']:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


if __name__ == "__main__":
    main()
