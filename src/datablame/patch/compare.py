"""Arms compared at the level of training seeds: pure functions of the comparison table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datablame.config_checks import OUTSIDE_FAMILY
from datablame.records import EVERY, LABELS
from datablame.seeds import stream_key
from datablame.stats.bootstrap import two_way, two_way_mean
from datablame.stats.crossed import crossed_t
from datablame.stats.intervals import wilson
from datablame.stats.permutation import holm, permutation_p

__all__ = ["MIN_SEEDS", "compared", "comparison"]

MIN_SEEDS = 4
"""With three against three seeds no permutation p can be below .10, so none is given."""

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
    table: Sequence[Mapping[str, Any]], arms: Sequence[str], headline: tuple[str, int, float], seed: int
) -> list[dict[str, Any]]:
    """For every protocol, k, alpha, split, behaviour and arm: rate, interval, differences to random and baseline, p.

    `headline` is (protocol, k, alpha*): its rows over all behaviours on held-out prompts decide, the others are
    exploratory. Each seed's value is the mean over prompts of their rates. Holm runs over the patched methods of one
    comparison, on the larger of the p values against random and against baseline.
    """
    results = []
    groups = dict.fromkeys(
        (row["protocol"], row["k"], row["alpha"], row["split"]) for row in table if row["arm"] == "baseline"
    )
    for protocol, k, alpha, split in groups:
        rows = [
            row
            for row in table
            if row["alpha"] == alpha and row["split"] == split and row["protocol"] in (protocol, "none")
            if row["k"] in (k, 0)
        ]
        for behaviour in (EVERY, *dict.fromkeys(row["behaviour"] for row in rows)):
            chosen = [row for row in rows if behaviour in (EVERY, row["behaviour"])]
            matrices = {arm: _matrix(chosen, arm) for arm in arms if any(row["arm"] == arm for row in chosen)}
            family = [
                _against(arm, matrices, stream_key("bootstrap", seed, protocol, k, alpha, split, behaviour, arm))
                for arm in matrices
            ]
            _adjust(family)
            about = {
                "protocol": protocol,
                "k": k,
                "alpha": alpha,
                "split": split,
                "behaviour": behaviour,
                "headline": (protocol, k, alpha) == headline and split == "held-out" and behaviour == EVERY,
            }
            shares = {arm: _shares(chosen, arm) for arm in matrices}
            results += [{**about, **result, **shares[result["arm"]]} for result in family]
    return results


def _matrix(rows: Sequence[Mapping[str, Any]], arm: str) -> NDArray[np.float64]:
    """Rates as (seeds, prompts); NaN where nothing of a cell was scored."""
    mine = [row for row in rows if row["arm"] == arm]
    seeds = sorted({row["seed"] for row in mine})
    prompts = sorted({row["prompt_id"] for row in rows})
    matrix = np.full((len(seeds), len(prompts)), np.nan)
    for row in mine:
        if row["rate"] is not None:
            matrix[seeds.index(row["seed"]), prompts.index(row["prompt_id"])] = row["rate"]
    return matrix


def _against(arm: str, matrices: Mapping[str, NDArray[np.float64]], key: int) -> dict[str, Any]:
    complete = ~np.isnan(np.concatenate(list(matrices.values()))).any(0)
    mine = matrices[arm][:, complete]
    per_seed = mine.mean(1) if complete.any() else np.array([])
    interval = two_way_mean(mine, key) if per_seed.size else None
    result: dict[str, Any] = {
        "arm": arm,
        "seeds": int(mine.shape[0]),
        "prompts": int(complete.sum()),
        "per_seed": per_seed.tolist(),
        "rate": float(per_seed.mean()) if per_seed.size else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "p_holm": None,
        "family": None,
    }
    for reference in _REFERENCES:
        result[f"to_{reference}"] = None
        if reference in matrices and arm not in (reference, "untrained") and per_seed.size:
            result[f"to_{reference}"] = _difference(mine, matrices[reference][:, complete], key)
    p_values = [result[f"to_{name}"]["p"] for name in _REFERENCES if result[f"to_{name}"]]
    result["p"] = max(p_values) if len(p_values) == len(_REFERENCES) and None not in p_values else None
    return result


def _difference(mine: NDArray[np.float64], other: NDArray[np.float64], key: int) -> dict[str, Any]:
    interval = two_way(mine, other, key)
    enough = min(mine.shape[0], other.shape[0]) >= MIN_SEEDS
    test = permutation_p(mine.mean(1), other.mean(1)) if enough else None
    crossed = crossed_t(mine, other)
    reference = float(other.mean())
    difference = float(mine.mean()) - reference
    return {
        "difference": difference,
        "low": interval.low,
        "high": interval.high,
        "relative": difference / reference if reference else None,
        "p": test.p if test else None,
        "smallest_p": test.smallest if test else None,
        "why_no_p": None if enough else f"fewer than {MIN_SEEDS} training seeds",
        "t": crossed.t if crossed else None,
        "t_p": crossed.p if crossed else None,
        "t_low": crossed.low if crossed else None,
        "t_high": crossed.high if crossed else None,
    }


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
