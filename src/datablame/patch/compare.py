"""Arms compared at the level of training seeds: pure functions of the comparison table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datablame.patch.difference import Cells, difference, sensitivity
from datablame.seeds import stream_key
from datablame.stats.bootstrap import two_way_mean
from datablame.stats.intervals import wilson
from datablame.stats.permutation import holm
from datablame.study.checks import OUTSIDE_FAMILY
from datablame.tables import EVERY, LABELS

_REFERENCES = ("random", "baseline")


def comparison(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each arm, protocol, k, seed, prompt and alpha: labels counted, rate and Wilson interval."""
    cells: dict[tuple[Any, ...], dict[str, int]] = {}
    for row in rows:
        cell = tuple(row[name] for name in ("arm", "protocol", "k", "seed", "behaviour", "prompt_id", "split", "alpha"))
        cells.setdefault(cell, dict.fromkeys(LABELS, 0))[row["label"]] += 1
    table = []
    for cell, counts in cells.items():
        arm, protocol, k, seed, behaviour, prompt_id, split, alpha = cell
        n = sum(counts.values())
        scored = n - counts["unscored"]
        interval = wilson(counts["harmful"], scored) if scored else None
        table.append(
            {
                "arm": arm,
                "protocol": protocol,
                "k": k,
                "seed": seed,
                "behaviour": behaviour,
                "prompt_id": prompt_id,
                "split": split,
                "alpha": alpha,
                "n": n,
                **counts,
                "rate": counts["harmful"] / scored if scored else None,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
            }
        )
    return table


def compared(
    table: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    headline: tuple[str, int, float],
    seed: int,
    margin: float,
) -> list[dict[str, Any]]:
    """For every protocol, alpha, split, behaviour, arm and K: rate, interval, differences to random and baseline, p.

    `headline` is (protocol, K, alpha*): its rows over all behaviours on held-out prompts decide, the others are
    exploratory. An arm at K is compared with random at the same K; an arm that is the same at every K stands once, with
    K = 0, and is compared with random at the headline's K. Each seed's value is the mean over prompts of their rates.
    Holm runs over the patched methods at one K, on the larger of the p values against random and against baseline.
    `margin` is the share of the reference's rate within which a difference counts as none.
    """
    results = []
    groups = dict.fromkeys((row["protocol"], row["alpha"], row["split"]) for row in table if row["arm"] == "baseline")
    for protocol, alpha, split in groups:
        rows = [
            row
            for row in table
            if row["alpha"] == alpha and row["split"] == split and row["protocol"] in (protocol, "none")
        ]
        decides = (protocol, alpha, split) == (headline[0], headline[2], "held-out")
        for behaviour in (EVERY, *dict.fromkeys(row["behaviour"] for row in rows)):
            chosen = [row for row in rows if behaviour in (EVERY, row["behaviour"])]
            about = {"protocol": protocol, "alpha": alpha, "split": split, "behaviour": behaviour}
            for place, k in enumerate(_ks(chosen, headline[1])):
                own = [row for row in chosen if row["k"] in (0, k)]
                k_of = {row["arm"]: row["k"] for row in own}
                cells = _complete({arm: _cells(own, arm) for arm in arms if arm in k_of})
                marked = decides and behaviour == EVERY and k == headline[1]
                family = []
                for arm in cells:
                    if k_of[arm] or place == 0:
                        key = stream_key("bootstrap", seed, protocol, k_of[arm], alpha, split, behaviour, arm)
                        result = _against(arm, cells, key, margin, mixed=marked)
                        family.append({**about, "k": k_of[arm], "headline": marked, **result, **_shares(own, arm)})
                _adjust(family)
                results += family
    return results


def again(tests: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The baseline trained again on other seeds against itself, where the verdict comes from; None if it was not."""
    decisive = {row["arm"]: row for row in tests if row["headline"]}
    if "a-a" not in decisive:
        return None
    row = decisive["a-a"]
    against = row["to_baseline"] or {"why_no_p": "no prompt was scored in every arm and seed"}
    return {
        "protocol": row["protocol"],
        "seeds": row["seeds"],
        "rate": decisive["baseline"]["rate"],
        "again": row["rate"],
        **{name: against.get(name) for name in ("difference", "low", "high", "p", "smallest_p", "why_no_p")},
    }


def _ks(rows: Sequence[Mapping[str, Any]], first: int) -> list[int]:
    """Every K of the rows, the headline's first; 0 alone where no arm depends on K."""
    ks = {row["k"] for row in rows} - {0}
    return sorted(ks, key=lambda k: (k != first, k)) or [0]


def _cells(rows: Sequence[Mapping[str, Any]], arm: str) -> Cells:
    mine = [row for row in rows if row["arm"] == arm]
    seeds = {seed: place for place, seed in enumerate(sorted({row["seed"] for row in mine}))}
    prompts = {prompt: place for place, prompt in enumerate(sorted({row["prompt_id"] for row in rows}))}
    harmful, scored = np.zeros((2, len(seeds), len(prompts)))
    for row in mine:
        cell = seeds[row["seed"]], prompts[row["prompt_id"]]
        harmful[cell], scored[cell] = row["harmful"], row["n"] - row["unscored"]
    rates = np.divide(harmful, scored, out=np.full_like(harmful, np.nan), where=scored > 0)
    return Cells(rates, harmful, scored)


def _complete(cells: Mapping[str, Cells]) -> dict[str, Cells]:
    """The prompts that were scored in every arm and seed."""
    kept = ~np.isnan(np.concatenate([own.rates for own in cells.values()])).any(0)
    return {arm: Cells(*(values[:, kept] for values in own)) for arm, own in cells.items()}


def _against(arm: str, cells: Mapping[str, Cells], key: int, margin: float, *, mixed: bool) -> dict[str, Any]:
    mine = cells[arm].rates
    per_seed = mine.mean(1) if mine.shape[1] else np.array([])
    interval = two_way_mean(mine, key) if per_seed.size else None
    result: dict[str, Any] = {
        "arm": arm,
        "seeds": int(mine.shape[0]),
        "prompts": int(mine.shape[1]),
        "per_seed": per_seed.tolist(),
        "rate": float(per_seed.mean()) if per_seed.size else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "p_holm": None,
        "family": None,
    }
    for reference in _REFERENCES:
        result[f"to_{reference}"] = None
        if reference in cells and arm not in (reference, "untrained") and per_seed.size:
            result[f"to_{reference}"] = difference(mine, cells[reference].rates, key, margin)
    if result["to_random"]:
        result["to_random"]["mixed"] = sensitivity(cells[arm], cells["random"]) if mixed else None
    p_values = [result[f"to_{name}"]["p"] for name in _REFERENCES if result[f"to_{name}"]]
    result["p"] = max(p_values) if len(p_values) == len(_REFERENCES) and None not in p_values else None
    return result


def _adjust(family: Sequence[dict[str, Any]]) -> None:
    methods = [result for result in family if result["arm"] not in OUTSIDE_FAMILY and result["p"] is not None]
    for result, adjusted in zip(methods, holm([result["p"] for result in methods]), strict=True):
        result["p_holm"] = adjusted
        result["family"] = len(methods)


def _shares(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[str, Any]:
    """The labels over all seeds and prompts, and the harmful rate among what is coherent."""
    counts = {label: sum(row[label] for row in rows if row["arm"] == arm) for label in LABELS}
    scored = sum(counts.values()) - counts["unscored"]
    coherent = scored - counts["incoherent"]
    return {"counts": counts, "rate_of_coherent": counts["harmful"] / coherent if coherent else None}
