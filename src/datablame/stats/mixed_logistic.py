"""A logistic mixed model of two arms: a sensitivity check on the log-odds scale, no test that decides."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import t as students_t

_PRIOR_DEVIATION = 2.0
"""Of both fixed effects, in logits (statsmodels' default)."""
Array = NDArray[np.float64]


class MixedEffect(NamedTuple):
    """Log odds of harm in the first arm less those in the second, with a 95 % interval and the deviations found."""

    log_odds: float
    standard_error: float
    low: float
    high: float
    prompt_deviation: float
    seed_deviation: float


class Sensitivity(NamedTuple):
    """The effect, or why there is none."""

    effect: MixedEffect | None
    why_not: str | None


def mixed_logistic(harmful_a: ArrayLike, scored_a: ArrayLike, harmful_b: ArrayLike, scored_b: ArrayLike) -> Sensitivity:
    """Log odds = constant + arm + prompt + training seed, from counts as (seeds, prompts) with the same prompts.

    Deviations of prompts and seeds come from statsmodels' variational fit (BinomialBayesMixedGLM). Its error of the
    arm is not used: it takes the arm as independent of the seeds, which makes it several times too small. Instead the
    arm's error is that of all effects together, given the deviations (penalised quasi-likelihood; Breslow and Clayton
    1993), with t of S_a + S_b - 2 degrees of freedom.

    Raises:
        ValueError: the arrays are not (seeds, prompts) of one form an arm with the same prompts, or a count is not
            between 0 and its n.
    """
    harmful = [np.asarray(values, dtype=float) for values in (harmful_a, harmful_b)]
    scored = [np.asarray(values, dtype=float) for values in (scored_a, scored_b)]
    shapes = [values.shape for values in (*harmful, *scored)]
    if any(len(shape) != 2 for shape in shapes) or shapes[:2] != shapes[2:] or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"need counts as (seeds, prompts) with the same prompts, not {shapes}")
    if any(((k < 0) | (k > n)).any() for k, n in zip(harmful, scored, strict=True)):
        raise ValueError("a count is not between 0 and its n")
    why_not = _obstacle(harmful, scored)
    if why_not is not None:
        return Sensitivity(None, why_not)
    design = _indicators([values.shape[0] for values in harmful], harmful[0].shape[1])
    k, n = (np.concatenate([values.ravel() for values in counts]) for counts in (harmful, scored))
    deviations = _deviations(design, k, n, harmful[0].shape[1])
    if deviations is None:
        return Sensitivity(None, "the variational fit did not converge")
    prompt_deviation, seed_deviation = deviations
    seeds = harmful[0].shape[0] + harmful[1].shape[0]
    spread = np.repeat([_PRIOR_DEVIATION, prompt_deviation, seed_deviation], [2, harmful[0].shape[1], seeds])
    found = _mode(design, k, n, spread)
    if found is None:
        return Sensitivity(None, "the penalised likelihood was not maximised")
    log_odds, error = found
    half = float(students_t.ppf(0.975, seeds - 2)) * error
    effect = MixedEffect(log_odds, error, log_odds - half, log_odds + half, prompt_deviation, seed_deviation)
    return Sensitivity(effect, None)


def _obstacle(harmful: list[Array], scored: list[Array]) -> str | None:
    if min(values.shape[0] for values in harmful) < 2:
        return "fewer than two training seeds in an arm"
    if harmful[0].shape[1] < 2:
        return "fewer than two prompts"
    for k, n in zip(harmful, scored, strict=True):
        if not n.sum():
            return "an arm has no scored sample"
        if k.sum() in (0, n.sum()):
            return "all samples of an arm have one label, so that its log odds are infinite"
    return None


def _indicators(seeds: list[int], prompts: int) -> Array:
    """One row a cell (arm, seed, prompt); columns: one, first arm, prompts, seeds of both arms."""
    seed, prompt = (places.ravel() for places in np.indices((sum(seeds), prompts)))
    first = (seed < seeds[0]).astype(float)
    return np.column_stack([np.ones(len(first)), first, np.eye(prompts)[prompt], np.eye(sum(seeds))[seed]])


def _deviations(design: Array, k: Array, n: Array, prompts: int) -> tuple[float, float] | None:
    """Standard deviations of prompts and of seeds by statsmodels' variational fit, one row a sample."""
    from scipy.sparse import csr_array
    from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

    cell = np.repeat(np.arange(len(k)), n.astype(int))
    place = np.arange(len(cell)) - np.repeat(np.cumsum(n) - n, n.astype(int))
    rows = design[cell]
    kinds = np.repeat([0, 1], [prompts, design.shape[1] - 2 - prompts])
    model = BinomialBayesMixedGLM(
        (place < k[cell]) * 1.0, rows[:, :2], csr_array(rows[:, 2:]), kinds, fe_p=_PRIOR_DEVIATION
    )
    # Starting values of its own would be random.
    mean = np.zeros(4 + len(kinds))
    mean[0] = logit((k.sum() + 0.5) / (n.sum() + 1))
    mean[2:4] = -0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            fitted = model.fit_vb(mean=mean, sd=np.full(len(mean), 0.5))
        except (UserWarning, RuntimeWarning, np.linalg.LinAlgError):
            return None
    prompt, seed = np.exp(fitted.vcp_mean)
    return float(prompt), float(seed)


def _mode(design: Array, k: Array, n: Array, spread: Array) -> tuple[float, float] | None:
    """The first arm's effect and its error at the mode of the binomial likelihood times normal effects."""

    def loss(effects: Array) -> float:
        log_odds = design @ effects
        return float(n @ np.logaddexp(0, log_odds) - k @ log_odds + ((effects / spread) ** 2).sum() / 2)

    def gradient(effects: Array) -> Array:
        return np.asarray(design.T @ (n * expit(design @ effects) - k) + effects / spread**2)

    def curvature(effects: Array) -> Array:
        p = expit(design @ effects)
        return np.asarray((design.T * (n * p * (1 - p))) @ design + np.diag(spread**-2))

    start = np.zeros(design.shape[1])
    start[0] = logit(k.sum() / n.sum())
    found = minimize(loss, start, jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-6})
    if np.abs(gradient(found.x)).max() > 1e-3:
        return None
    return float(found.x[1]), float(np.sqrt(np.linalg.inv(curvature(found.x))[1, 1]))
