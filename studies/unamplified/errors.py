"""How far each estimator of the rate at alpha 0 is off, over budgets of outputs that share none."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from studies.unamplified.path import extrapolated

from datablame.seeds import generator
from datablame.stats.importance import balance_log_weights, weighed_rate
from datablame.tables import EVERY, Sample

Floats = NDArray[np.float64]
SHUFFLES = 20
"""How often the outputs of each cell are dealt anew into budgets, so that deviations are known better."""


class Outputs(NamedTuple):
    """The outputs of one behaviour: harmful or not, as (prompts, alphas, outputs), and log q as (..., alphas)."""

    alphas: tuple[float, ...]
    harmful: NDArray[np.bool_]
    log_q: Floats

    def dealt(self, places: NDArray[np.int64]) -> "Outputs":
        """Those at the places (prompts, alphas, outputs) of each cell."""
        harmful = np.take_along_axis(self.harmful, places, 2)
        return Outputs(self.alphas, harmful, np.take_along_axis(self.log_q, places[..., None], 2))

    def at(self, kept: Sequence[int]) -> "Outputs":
        """Those drawn at some of the alphas only; log q stays that of all."""
        return Outputs(self.alphas, self.harmful[:, list(kept)], self.log_q[:, list(kept)])


class Truth(NamedTuple):
    """The rate among plain outputs, the mean over prompts of p (1 - p), and how many outputs there are."""

    rate: float
    variance: float
    n: int


class Error(NamedTuple):
    """One estimator on one behaviour: its mean and deviation over budgets, its bias against the truth, its error."""

    mean: float
    deviation: float
    bias: float
    bias_error: float
    rmse: float
    rollouts: int
    plain: float
    """Plain outputs that have the same error."""
    failed: int
    """Budgets without an estimate."""

    @property
    def factor(self) -> float:
        """How many times fewer rollouts than plain sampling."""
        return self.plain / self.rollouts


def outputs_of(samples: Sequence[Sample], alphas: tuple[float, ...]) -> Outputs:
    """Samples as arrays; every cell must have as many, none of them unscored."""
    number = {name: index for index, name in enumerate(dict.fromkeys(sample.prompt_id for sample in samples))}
    cells: list[list[list[Sample]]] = [[[] for _ in alphas] for _ in number]
    for sample in sorted(samples, key=lambda sample: sample.index):
        cells[number[sample.prompt_id]][alphas.index(sample.alpha)].append(sample)
    harmful = np.array([[[sample.label == "harmful" for sample in cell] for cell in line] for line in cells])
    log_q = np.array([[[sample.log_q for sample in cell] for cell in line] for line in cells])
    return Outputs(alphas, harmful, log_q)


def truth_of(samples: Sequence[Sample]) -> Truth:
    """Plain outputs counted prompt by prompt."""
    counted: dict[str, list[bool]] = {}
    for sample in samples:
        counted.setdefault(sample.prompt_id, []).append(sample.label == "harmful")
    p = np.array([np.mean(cell) for cell in counted.values()])
    return Truth(float(p.mean()), float((p * (1 - p)).mean()), sum(map(len, counted.values())))


def counted(made: Outputs) -> float:
    """The share at alpha 0."""
    return float(made.harmful[:, 0].mean())


def weighed(made: Outputs) -> float:
    """Importance sampling as datablame does it: balance heuristic, known normalisers."""
    log_w, harmful, prompts, strata = _weights(made)
    return weighed_rate(log_w, harmful, prompts, strata).rate


def self_normalised(made: Outputs) -> float:
    """The same weights, divided by their sum within each prompt."""
    log_w, harmful, prompts, _ = _weights(made)
    w = np.exp(log_w)
    return float((np.bincount(prompts, w * harmful) / np.bincount(prompts, w)).mean())


def regressed(made: Outputs) -> float:
    """The same weights with q_k / mixture - 1, whose means are known to be 0, as control variates (Owen, Zhou 2000)."""
    log_w, harmful, _, _ = _weights(made)
    log_q = made.log_q.reshape(len(log_w), -1)
    ratios = np.exp(log_q[:, :-1] - (log_q[:, 0] - log_w)[:, None]) - 1
    design = np.column_stack([np.ones(len(log_w)), ratios])
    return float(np.linalg.lstsq(design, np.exp(log_w) * harmful, rcond=None)[0][0])


def amplified_only(made: Outputs) -> float:
    """Importance sampling without the outputs at alpha 0: no bound on the weights."""
    return weighed(made.at(range(1, len(made.alphas))))


def line_through(first: int, last: int | None, degree: int = 1) -> Callable[[Outputs], float]:
    """The logit path through some of the alphas."""

    def estimate(made: Outputs) -> float:
        k = made.harmful[:, first:last].sum(2)
        found = extrapolated(made.alphas[first:last], k, np.full(k.shape, made.harmful.shape[2]), degree)
        return float("nan") if found is None else found.rate

    return estimate


ESTIMATORS: Mapping[str, tuple[Callable[[Outputs], float], slice]] = {
    "counted at alpha 0": (counted, slice(0, 1)),
    "importance sampling (datablame's)": (weighed, slice(None)),
    "importance sampling, self-normalised": (self_normalised, slice(None)),
    "importance sampling, control variates": (regressed, slice(None)),
    "importance sampling, no output at alpha 0": (amplified_only, slice(1, None)),
    "path, line through two alphas (datablame's)": (line_through(1, 3), slice(1, 3)),
    "path, line through all alphas": (line_through(1, None), slice(1, None)),
    "path, quadratic": (line_through(1, None, 2), slice(1, None)),
}
"""The estimators and the alphas whose outputs they read."""
UNBIASED = 5
"""The first ones have no bias, or none but of the order of 1 / outputs, whatever the truth's own error makes it look."""


def errors(made: Mapping[str, Outputs], truth: Truth, samples: int, seed: int) -> dict[str, Error]:
    """Every estimator on the behaviours' mean, weighed by their prompts; one behaviour is the mean of one."""
    total = min(each.harmful.shape[2] for each in made.values())
    budgets = total // samples
    shares = np.array([each.harmful.shape[0] for each in made.values()], dtype=float)
    estimates: dict[str, list[list[float]]] = {name: [] for name in ESTIMATORS}
    for shuffle in range(SHUFFLES):
        random = generator("unamplified budgets", seed, shuffle, *made)
        orders = [_orders(each, total, random if shuffle else None) for each in made.values()]
        for name, (estimate, _) in ESTIMATORS.items():
            found = []
            for budget in range(budgets):
                here = slice(budget * samples, (budget + 1) * samples)
                parts = [estimate(o.dealt(order[..., here])) for o, order in zip(made.values(), orders, strict=True)]
                found.append(float(shares @ np.array(parts) / shares.sum()))
            estimates[name].append(found)
    prompts = int(shares.sum())
    alphas = len(next(iter(made.values())).alphas)
    return {
        name: _error(np.array(estimates[name]), truth, prompts * samples * len(range(alphas)[read]), place < UNBIASED)
        for place, (name, (_, read)) in enumerate(ESTIMATORS.items())
    }


def _error(estimates: Floats, truth: Truth, rollouts: int, unbiased: bool) -> Error:
    """MSE = deviation^2 + bias^2, less what the truth's error and that of the mean add to bias^2; unbiased: no bias."""
    deviation = float(np.sqrt(np.nanvar(estimates, axis=1, ddof=1).mean()))
    mean = float(np.nanmean(estimates))
    bias = mean - truth.rate
    bias_error = float(np.sqrt(truth.variance / truth.n + deviation**2 / estimates.shape[1]))
    mse = deviation**2 + (0.0 if unbiased else max(0.0, bias**2 - bias_error**2))
    return Error(
        mean=mean,
        deviation=deviation,
        bias=bias,
        bias_error=bias_error,
        rmse=float(np.sqrt(mse)),
        rollouts=rollouts,
        plain=truth.variance / mse,
        failed=int(np.isnan(estimates[0]).sum()),
    )


def _orders(made: Outputs, total: int, random: np.random.Generator | None) -> NDArray[np.int64]:
    """The places of each cell's outputs, as drawn or shuffled."""
    places = np.broadcast_to(np.arange(total), (*made.harmful.shape[:2], total))
    return places if random is None else random.permuted(places, axis=2)


def _weights(made: Outputs) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Log weight, harmful, prompt and stratum of every output; every cell has as many."""
    prompts, strata, samples = made.harmful.shape
    log_q = made.log_q.reshape(prompts * strata * samples, -1)
    counts = np.zeros(log_q.shape[1])
    counts[-strata:] = samples
    log_w = balance_log_weights(log_q[:, 0], log_q, counts)
    cells = np.indices((prompts, strata, samples)).reshape(3, -1)
    return log_w, made.harmful.ravel(), cells[0], cells[1]


def pooled(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each behaviour."""
    by_behaviour: dict[str, list[Sample]] = {}
    for sample in samples:
        by_behaviour.setdefault(sample.behaviour, []).append(sample)
    return by_behaviour


def name_of(behaviour: str) -> str:
    """A behaviour in words."""
    return "all behaviours" if behaviour == EVERY else behaviour.replace("-", " ")
