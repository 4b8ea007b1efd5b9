"""How far prompts, trainings and a prompt within a training spread on the log-odds scale, from a study's own counts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Deviations(NamedTuple):
    """Standard deviations in logits; None where the counts cannot give one."""

    prompt: float | None
    seed: float | None
    interaction: float | None


class _Squares(NamedTuple):
    """Mean squares of one arm, its degrees of freedom, and the variance of its cells that sampling explains."""

    prompt: float | None
    seed: float | None
    rest: float | None
    sampling: float
    seeds: int
    prompts: int


def deviations(arms: Sequence[tuple[ArrayLike, ArrayLike]]) -> Deviations:
    """Estimates from (harmful, scored) counts of arms, each (seeds, prompts): moments of a two-way random model.

    The cells are empirical logits log((k + 1/2) / (n - k + 1/2)) of variance 1/(k + 1/2) + 1/(n - k + 1/2) by sampling
    (Gart and Zweifel 1967). With S seeds and P prompts the mean squares have the expectations S s_prompt^2 + rest,
    P s_seed^2 + rest and rest = s_interaction^2 + sampling; a negative estimate counts as 0. Arms are averaged.

    Raises:
        ValueError: counts of an arm are not two arrays (seeds, prompts) of one shape with 0 <= harmful <= scored.
    """
    found = [_squares(np.asarray(harmful, dtype=float), np.asarray(scored, dtype=float)) for harmful, scored in arms]
    return Deviations(
        prompt=_root([_prompt(each) for each in found]),
        seed=_root(
            [
                (each.seed - each.rest) / each.prompts
                for each in found
                if each.seed is not None and each.rest is not None
            ]
        ),
        interaction=_root([each.rest - each.sampling for each in found if each.rest is not None]),
    )


def _squares(harmful: NDArray[np.float64], scored: NDArray[np.float64]) -> _Squares:
    if harmful.ndim != 2 or harmful.shape != scored.shape or not ((harmful >= 0) & (harmful <= scored)).all():
        raise ValueError(f"need harmful and scored counts as (seeds, prompts), not {harmful.shape} and {scored.shape}")
    yes, no = harmful + 0.5, scored - harmful + 0.5
    logits = np.log(yes / no)
    seeds, prompts = logits.shape
    by_seed, by_prompt = logits.mean(1), logits.mean(0)
    rest = logits - by_seed[:, None] - by_prompt + logits.mean()
    return _Squares(
        prompt=float(seeds * by_prompt.var(ddof=1)) if prompts > 1 else None,
        seed=float(prompts * by_seed.var(ddof=1)) if seeds > 1 else None,
        rest=float((rest**2).sum() / ((seeds - 1) * (prompts - 1))) if min(seeds, prompts) > 1 else None,
        sampling=float((1 / yes + 1 / no).mean()),
        seeds=seeds,
        prompts=prompts,
    )


def _prompt(found: _Squares) -> float | None:
    """The variance over prompts; with one training the interaction is in it."""
    if found.prompt is None:
        return None
    return (found.prompt - (found.sampling if found.rest is None else found.rest)) / found.seeds


def _root(variances: Sequence[float | None]) -> float | None:
    known = [variance for variance in variances if variance is not None]
    return float(np.sqrt(max(0.0, sum(known) / len(known)))) if known else None
