"""The embedded study on organisms of five seeds; writes the table of this folder's README.

    python studies/organism/run.py

Seed 0 is the one that the organism was designed on, seeds 1 to 4 were not looked at before. Finished runs are resumed,
which recomputes nothing.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.running import run_study

HERE = Path(__file__).parent
SEEDS = range(5)
METHODS = ("gradient", "activation", "llm-judge", "bm25")
STAR = "alpha\\*"
FIGURES = ("behavior_rates.png", "patching_comparison.png", "final_results.png")


def main() -> None:
    """Run what isn't finished, then write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies/organism"), help="where the run folders are")
    runs = parser.parse_args().runs
    results = []
    for seed in SEEDS:
        folder = runs / f"seed-{seed}"
        run_study("organism", folder, sets=[f"organism.seed={seed}", f"seed={seed}"])
        results.append(json.loads((folder / "final_results.json").read_text(encoding="utf-8")))
    (HERE / "README.md").write_text(_readme(results), encoding="utf-8")
    for name in FIGURES:
        shutil.copy(runs / "seed-0" / name, HERE / name)


def _readme(results: list[dict[str, Any]]) -> str:
    return f"""# The embedded organism, five seeds

Made by `python studies/organism/run.py`: the preset `organism` with `organism.seed` and `seed` set to 0 to 4. The
corpus and the training settings were designed on seed 0 and on seeds above 99; seeds 1 to 4 were run for this table
only. Nothing was chosen after looking at them.

## Surfacing

Harmful rate over all prompts (attribution and held-out), 95 % Wilson intervals.

{_table(["seed", *(f"alpha {alpha:g}" for alpha in _alphas(results[0])), "disjoint", STAR], [_surfacing(r) for r in results])}

Each behaviour, held-out prompts, from alpha 0 to the largest:

{_table(["seed", *results[0]["study"]["behaviours"]], [_behaviours(r) for r in results])}

## Attribution

Precision at 20 over the whole pool (mean over behaviours), where chance gives .01, and in brackets inside the BM25
candidates.

{_table(["seed", *METHODS, "loss", "gradient-norm"], [_precision(r) for r in results])}

## Removal

`retrain`, five training seeds: harmful rate on held-out prompts at {STAR}, and the exact permutation p of gradient
against random (.008 is the smallest that five seeds can give).

{_table(["seed", *_arms(results[0]), "p gradient"], [_removal(r, "retrain") for r in results])}

`continue`, one training seed, a single run each:

{_table(["seed", *_arms(results[0])], [_removal(r, "continue")[:-1] for r in results])}

The figures are those of seed 0.

![The study in four panels](final_results.png)
![Harmful rate against alpha](behavior_rates.png)
![What removal does](patching_comparison.png)
"""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["--:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _seed(result: dict[str, Any]) -> str:
    return str(result["study"]["seed"])


def _alphas(result: dict[str, Any]) -> list[float]:
    return sorted({row["alpha"] for row in result["rates"]})


def _rows(result: dict[str, Any], behaviour: str, split: str | None) -> list[list[dict[str, Any]]]:
    pooled = [r for r in result["rates"] if r["prompt_id"] == "*" and r["behaviour"] == behaviour]
    return [[r for r in pooled if r["alpha"] == a and split in (None, r["split"])] for a in _alphas(result)]


def _surfacing(result: dict[str, Any]) -> list[str]:
    from datablame.stats.intervals import wilson

    cells, intervals = [], []
    for rows in _rows(result, "*", None):
        harmful, scored = sum(r["harmful"] for r in rows), sum(r["n"] - r["unscored"] for r in rows)
        intervals.append(wilson(harmful, scored))
        cells.append(f"{100 * harmful / scored:.1f} [{100 * intervals[-1].low:.1f}, {100 * intervals[-1].high:.1f}]")
    disjoint = "yes" if intervals[-1].low > intervals[0].high else "no"
    return [_seed(result), *cells, disjoint, f"{result['alpha_star']['alpha_star']}"]


def _behaviours(result: dict[str, Any]) -> list[str]:
    cells = []
    for behaviour in result["study"]["behaviours"]:
        rates = [rows[0]["rate"] for rows in _rows(result, behaviour, "held-out")]
        cells.append(f"{100 * rates[0]:.1f} to {100 * rates[-1]:.1f}")
    return [_seed(result), *cells]


def _precision(result: dict[str, Any]) -> list[str]:
    cells = []
    for method in (*METHODS, "loss", "gradient-norm"):
        pools = result["attribution"][method]["by_pool"]
        whole, candidates = (pools.get(name, {}).get("precision_at_k") for name in ("whole", "candidates"))
        cells.append(
            f"{'-' if whole is None else f'{whole:.2f}'} ({'-' if candidates is None else f'{candidates:.2f}'})"
        )
    return [_seed(result), *cells]


def _arms(result: dict[str, Any]) -> list[str]:
    return [row["arm"] for row in result["patching"] if row["headline"]]


def _removal(result: dict[str, Any], protocol: str) -> list[str]:
    alpha = result["study"]["headline"]["alpha"]
    rows = {
        row["arm"]: row
        for row in result["patching"]
        if (row["protocol"], row["behaviour"], row["split"], row["alpha"]) == (protocol, "*", "held-out", alpha)
    }
    cells = [f"{100 * rows[arm]['rate']:.1f}" if arm in rows else "-" for arm in _arms(result)]
    against = rows.get("gradient", {}).get("to_random")
    return [_seed(result), *cells, f"{against['p']:.3f}" if against and against["p"] is not None else "-"]


if __name__ == "__main__":
    main()
