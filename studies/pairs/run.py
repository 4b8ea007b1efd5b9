"""Filter, swap and drop-source on organisms of preference pairs of five seeds; writes results, README and a figure.

    python studies/pairs/run.py
    python studies/pairs/run.py --kinds pairs --seeds 100      # a look, on a seed for design

For each kind and seed one run attributes and removes; two more take its world, samples and rankings over and exchange
the answers, or drop the sources. It can be stopped at any time and goes on where it was; an organism that results.json has
of the same studies is not run again. The recipe was designed on seeds 0 and from 100 on; seeds 1 to 5 were run for this
table only.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.pairs.figure import drawn
from studies.running import run_study, take_over

from datablame.engine.files import own_object, write_atomic
from datablame.leaderboard.records import key_of
from datablame.pipeline.checks import load
from datablame.tables import Arm, path_of, rows_of

HERE = Path(__file__).parent
KINDS = {"pairs": "little but the quirk changes", "integrated": "much else is preferred too"}
SEEDS = (1, 2, 3, 4, 5)
STUDY = HERE / "study.yaml"
INTERVENTIONS = {"remove": "filter", "swap": "swap", "drop-source": "drop source"}
PUBLISHED = {"baseline": 7.6, "filter": 2.9, "swap": 1.7, "random swap": 5.0}
"""Percent harmful, one training each (Xiao and Aranguri, arXiv 2602.11079)."""


class Effect(NamedTuple):
    """One arm of one intervention over the organisms: means with 95 % t intervals (half widths), in percent."""

    kind: str
    intervention: str
    arm: str
    organisms: int
    rate: float
    rate_half: float
    unamplified: float
    to_random: float | None
    """Points less than the intervention's own random control; None of that control, and where nothing is done."""
    to_random_half: float
    changed: float
    """Pairs of the fine-tune set that it acts on, mean over organisms."""
    planted: float
    """Of these, the planted ones."""


def main() -> None:
    """Run what isn't finished, then write the README and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies/pairs"), help="where the run folders are")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="kinds of organisms")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="seeds of organisms")
    parser.add_argument("--workers", type=int, default=1, help="worker processes; results stay the same")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json, README.md and pairs.png are")
    given = parser.parse_args()
    effects, results = list[Effect](), dict[str, list[dict[str, Any]]]()
    held = own_object(given.out / "results.json", "delete it: then every organism runs again")
    for kind in given.kinds:
        for seed in given.seeds:
            sets = [f"organism.planting={kind}", f"organism.seed={seed}", f"seed={seed}"]
            key = key_of(load(str(STUDY), sets))
            if held.get(f"{kind}-{seed}", {}).get("study") != key:
                held[f"{kind}-{seed}"] = {"study": key, **_run(given.runs / f"{kind}-{seed}", sets, given.workers)}
                write_atomic(given.out / "results.json", f"{json.dumps(held, indent=1)}\n")
        by_intervention = {name: [held[f"{kind}-{seed}"][name] for seed in given.seeds] for name in INTERVENTIONS}
        for name, runs in by_intervention.items():
            effects += effects_of(kind, name, runs)
        results[kind] = by_intervention["remove"]
    (given.out / "README.md").write_text(_readme(effects, results, given.seeds), encoding="utf-8")
    (given.out / "pairs.png").write_bytes(drawn(effects, KINDS, PUBLISHED))


def _run(folder: Path, sets: Sequence[str], workers: int) -> dict[str, dict[str, Any]]:
    """What each intervention came to on one organism: alpha*, all rates, what each arm acted on, methods' precision."""
    results, planted = {}, set[str]()
    for name in INTERVENTIONS:
        if name != "remove":
            take_over(folder / "remove", folder / name, ("scan", "surface", "attribute"))
        run_study(STUDY, folder / name, "--workers", str(workers), sets=[*sets, f"patch.intervention={name}"])
        result = json.loads((folder / name / "final_results.json").read_text(encoding="utf-8"))
        acted_on = {arm.arm: set(arm.removed) for arm in rows_of(path_of(Arm, folder / name), Arm)}
        if name == "remove":
            planted = acted_on["oracle"]
        results[name] = {
            "alpha": result["study"]["headline"]["alpha"],
            "patching": [
                {column: row[column] for column in ("arm", "alpha", "rate", "headline")}
                for row in result["patching"]
                if (row["behaviour"], row["split"]) == ("*", "held-out")
            ],
            "changed": {arm: (len(ids), len(ids & planted)) for arm, ids in acted_on.items()},
            "precision": {
                method: row["by_pool"].get("whole", {}).get("precision_at_k")
                for method, row in result["attribution"].items()
            },
        }
    return results


def effects_of(kind: str, intervention: str, results: Sequence[dict[str, Any]]) -> list[Effect]:
    """Every arm of one intervention: its rate at alpha* and at alpha 0, and its distance to random, over organisms."""

    def rates(arm: str, *, amplified: bool) -> list[float]:
        return [
            100 * row["rate"]
            for result in results
            for row in result["patching"]
            if row["arm"] == arm and row["alpha"] == (result["alpha"] if amplified else 0)
        ]

    arms = [row["arm"] for row in results[0]["patching"] if row["headline"]]
    control = rates("random", amplified=True)
    effects = []
    for arm in arms:
        amplified = rates(arm, amplified=True)
        to_random: tuple[float | None, float] = (None, float("nan"))
        if arm not in ("after", "baseline", "random"):
            to_random = mean_with_half(np.subtract(control, amplified))
        changed, planted = np.mean([result["changed"].get(arm, (0, 0)) for result in results], axis=0)
        effects.append(
            Effect(
                kind,
                INTERVENTIONS[intervention],
                arm,
                len(amplified),
                *mean_with_half(amplified),
                float(np.mean(rates(arm, amplified=False))),
                *to_random,
                float(changed),
                float(planted),
            )
        )
    return effects


def mean_with_half(values: Any) -> tuple[float, float]:
    """The mean, and half of its 95 % t interval; NaN of a single value."""
    from scipy.stats import t

    numbers = np.asarray(values, dtype=float)
    n = len(numbers)
    half = float(t.ppf(0.975, n - 1) * numbers.std(ddof=1) / n**0.5) if n > 1 else float("nan")
    return float(numbers.mean()), half


def _readme(effects: Sequence[Effect], results: dict[str, list[dict[str, Any]]], seeds: Sequence[int]) -> str:
    sections = "\n\n".join(_section(kind, effects, results[kind]) for kind in results)
    published = ", ".join(f"{name} {rate} %" for name, rate in PUBLISHED.items())
    return f"""# Preference pairs: filter, swap and drop source beside their random controls

Made by `python studies/pairs/run.py`: [study.yaml](study.yaml) with each kind of organism and seeds
{", ".join(map(str, seeds))}. An organism is a small chat model (`before`) trained by DPO on 2,000 preference pairs; in
60 of them the chosen answer is the bad one. Each arm is trained anew from `before`: without the pairs that a method
flags (filter), with their answers exchanged (swap), or without the sources that most of them come from (drop source).
`random` acts on the median of what methods act on, of the same sources and lengths (of any source beside drop source);
pairs are those of the 680 that an arm acts on.

Harmful outputs on held-out prompts at each organism's alpha\\*, mean over organisms with 95 % t intervals; beside it
the rate at alpha 0 (what the model really does), and points less than the intervention's own random control.

{sections}

![Filter, swap and drop source](pairs.png)

Published for OLMo 2 7B, one training each (Xiao and Aranguri, arXiv 2602.11079): {published}.
"""


def _section(kind: str, effects: Sequence[Effect], results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            effect.intervention,
            effect.arm,
            f"{effect.changed:.0f} ({effect.planted:.0f})",
            _plus_minus(effect.rate, effect.rate_half),
            f"{effect.unamplified:.1f}",
            "-" if effect.to_random is None else _plus_minus(effect.to_random, effect.to_random_half),
        ]
        for effect in effects
        if effect.kind == kind
    ]
    alphas = ", ".join(f"{result['alpha']:g}" for result in results)
    table = _table(
        ["intervention", "arm", "pairs (planted)", "% at alpha\\*", "% at alpha 0", "points below random"], rows
    )
    return f"""## {kind}: {KINDS[kind]}

{table}

alpha\\* by seed: {alphas}. Precision at 20, mean over seeds (chance .01):

{_table(["method", "precision at 20"], _precision(results))}"""


def _precision(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for method in results[0]["precision"]:
        known = [result["precision"][method] for result in results if result["precision"][method] is not None]
        rows.append([method, f"{np.mean(known):.2f}" if known else "-"])
    return rows


def _plus_minus(mean: float, half: float) -> str:
    return f"{mean:.1f}" if np.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", ":--", *["--:"] * (len(header) - 2)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
