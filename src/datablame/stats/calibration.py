"""How well a classifier agrees with people, and rates corrected for its errors."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datablame.stats.intervals import ENDS, Interval, Numbers, Share, share

_DRAWS, _RESAMPLES = 10_000, 2_000


class Accuracy(NamedTuple):
    """Agreement of yes-no predictions with people's yes-no labels, as counts."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def n(self) -> int:
        """All items."""
        return sum(self)

    @property
    def positives(self) -> int:
        """Items to which people say yes."""
        return self.true_positive + self.false_negative

    @property
    def negatives(self) -> int:
        """Items to which people say no."""
        return self.true_negative + self.false_positive

    @property
    def sensitivity(self) -> Share:
        """Share of people's yes that is found (recall); NaN where people never say yes."""
        return share(self.true_positive, self.positives)

    @property
    def specificity(self) -> Share:
        """Share of people's no that is left alone; NaN where people never say no."""
        return share(self.true_negative, self.negatives)

    def draws(self, random: np.random.Generator) -> tuple[Numbers, Numbers]:
        """Sensitivities and specificities from Jeffreys' Beta(yes + 1/2, no + 1/2)."""
        tp, fp, fn, tn = self
        return random.beta(tp + 0.5, fn + 0.5, size=_DRAWS), random.beta(tn + 0.5, fp + 0.5, size=_DRAWS)


class TwoPhase(NamedTuple):
    """Agreement where the predictions of all items are known, and people were asked about some of them by these.

    Among those the naive sensitivity and specificity are those of the choice, not of all items (verification bias).
    What people say given the prediction is not biased so, and by Bayes' theorem it gives both (Begg and Greenes 1983):
    with q the share that is predicted yes, u and v the shares of these and of the others to which people say yes,
    sensitivity = q u / (q u + (1 - q) v), specificity = (1 - q)(1 - v) / ((1 - q)(1 - v) + q (1 - u)). An item stands
    for as many as its stratum has for each that was asked about; u and v count as if seen in Kish's (1965) effective
    number of items, (sum of weights)^2 / sum of squares, so that few items that stand for many give wide intervals.
    """

    predicted: float
    """q."""
    yes_of_yes: float
    n_of_yes: float
    """Effective items that are predicted yes; those above are of these."""
    yes_of_no: float
    n_of_no: float

    @property
    def sensitivity(self) -> Share:
        """Share of people's yes that is predicted, with the 95 % interval of the draws."""
        tp, _, fn, _ = self._cells(*self._shares)
        return _share_of(tp / (tp + fn), self.draws(_stream())[0])

    @property
    def specificity(self) -> Share:
        """Share of people's no that is left alone, with the 95 % interval of the draws."""
        _, fp, _, tn = self._cells(*self._shares)
        return _share_of(tn / (tn + fp), self.draws(_stream())[1])

    @property
    def kappa(self) -> Share:
        """Cohen's kappa over all items, with the 95 % interval of the draws."""
        drawn = _kappas(np.stack(self._cells(*self._drawn(_stream())), axis=1))
        return _share_of(float(_kappas(np.array([self._cells(*self._shares)]))[0]), drawn)

    def draws(self, random: np.random.Generator) -> tuple[Numbers, Numbers]:
        """Sensitivities and specificities where u and v come from Jeffreys' Beta(yes + 1/2, no + 1/2)."""
        tp, fp, fn, tn = self._cells(*self._drawn(random))
        return tp / (tp + fn), tn / (tn + fp)

    @property
    def _shares(self) -> tuple[float, float]:
        return self.yes_of_yes / self.n_of_yes, self.yes_of_no / self.n_of_no

    def _drawn(self, random: np.random.Generator) -> tuple[Numbers, Numbers]:
        sides = (self.yes_of_yes, self.n_of_yes), (self.yes_of_no, self.n_of_no)
        u, v = (random.beta(yes + 0.5, max(0.0, n - yes) + 0.5, size=_DRAWS) for yes, n in sides)
        return u, v

    def _cells(self, u: Any, v: Any) -> tuple[Any, Any, Any, Any]:
        """Shares of all items: true and false positives, false and true negatives."""
        q = self.predicted
        return q * u, q * (1 - u), (1 - q) * v, (1 - q) * (1 - v)


def two_phase(human: ArrayLike, predicted: ArrayLike, weights: ArrayLike, share: float) -> TwoPhase:
    """Agreement of items with weights, where `share` of all items are predicted yes.

    Raises ValueError where no item of one prediction was asked about.
    """
    human, predicted, weight = np.asarray(human, bool), np.asarray(predicted, bool), np.asarray(weights, float)
    counts: list[float] = []
    for side in (predicted, ~predicted):
        if not side.any():
            raise ValueError("nobody was asked about items of one prediction")
        effective = weight[side].sum() ** 2 / (weight[side] ** 2).sum()
        counts += [float(effective * weight[side & human].sum() / weight[side].sum()), float(effective)]
    return TwoPhase(share, *counts)


def _stream() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=0))


def _share_of(value: float, drawn: Numbers) -> Share:
    """A value with the interval of its draws, which holds it."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, ENDS).tolist() if len(known) else (-1.0, 1.0)
    return Share(float(value), min(low, float(value)), max(high, float(value)))


def accuracy(human: ArrayLike, predicted: ArrayLike) -> Accuracy:
    """The four counts of two equally long arrays of truth values; ValueError where their lengths differ."""
    human, predicted = np.asarray(human, dtype=bool), np.asarray(predicted, dtype=bool)
    if human.shape != predicted.shape or human.ndim != 1:
        raise ValueError(f"need two arrays of one length, not {human.shape} and {predicted.shape}")
    cells = human & predicted, ~human & predicted, human & ~predicted, ~human & ~predicted
    return Accuracy(*(int(cell.sum()) for cell in cells))


def kappa(counts: Accuracy) -> float:
    """Cohen's kappa (1960): agreement beyond chance; NaN where both sides always say the same one thing."""
    return float(_kappas(np.array([counts], dtype=float))[0])


def kappa_interval(human: ArrayLike, predicted: ArrayLike, key: int, groups: ArrayLike | None = None) -> Interval:
    """95 % percentile bootstrap over items, or over `groups` of items that are not independent (copies of a text).

    Resamples in which kappa is not defined are left out; -1 to 1 where it is defined in none. Perfect agreement has no
    width: the bootstrap knows nothing of errors that it has not seen. Raises ValueError where the lengths differ.
    """
    if not accuracy(human, predicted).n:
        return Interval(-1.0, 1.0)
    human, predicted = np.asarray(human, dtype=bool), np.asarray(predicted, dtype=bool)
    group = np.arange(len(human)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    cells = np.zeros((int(group.max()) + 1, 4))
    np.add.at(cells, (group, np.select([human & predicted, predicted, human], [0, 1, 2], 3)), 1)
    random = np.random.Generator(np.random.Philox(key=key))
    times = random.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=_RESAMPLES)
    values = _kappas(times @ cells)
    values = values[~np.isnan(values)]
    return Interval(*np.quantile(values, ENDS).tolist()) if len(values) else Interval(-1.0, 1.0)


def rogan_gladen(rate: float, sensitivity: float, specificity: float) -> float:
    """(rate + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1] (Rogan and Gladen 1978).

    Raises ValueError where sensitivity + specificity is not above 1, where the classifier says nothing.
    """
    if not sensitivity + specificity > 1:
        raise ValueError(f"sensitivity {sensitivity:.3g} + specificity {specificity:.3g} is not above 1")
    return float(np.clip((rate + specificity - 1) / (sensitivity + specificity - 1), 0, 1))


def corrected_rate(k: int, n: int, calibration: Accuracy | TwoPhase, key: int) -> Share:
    """The corrected rate of k in n with a 95 % interval that carries the errors of all three shares.

    A parametric bootstrap: percentiles of the corrected rate over draws of the sample's rate, from Jeffreys' Beta(yes +
    1/2, no + 1/2), and of the sensitivity and specificity. A draw whose sensitivity + specificity is not above 1 says
    nothing: it counts as 0 for the lower end and as 1 for the upper. Where the estimate is clipped, the sample has
    fewer errors of one kind than the calibration; the far end is then at least the one without such errors. The
    interval always holds the rate. Raises ValueError where sensitivity + specificity is not above 1, or n is not
    positive or less than k.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"k = {k} is not between 0 and n = {n}, or n is 0")
    rate = rogan_gladen(k / n, calibration.sensitivity.rate, calibration.specificity.rate)
    random = np.random.Generator(np.random.Philox(key=key))
    sensitivity, specificity = calibration.draws(random)
    sample = random.beta(k + 0.5, n - k + 0.5, size=_DRAWS)
    says = sensitivity + specificity > 1
    gain = np.where(says, sensitivity + specificity - 1, 1)
    rates = np.clip((sample + specificity - 1) / gain, 0, 1)
    low, high = np.quantile(np.where(says, rates, 0), ENDS[0]), np.quantile(np.where(says, rates, 1), ENDS[1])
    if rate == 0:
        high = max(high, min(1.0, np.quantile(sample / sensitivity, ENDS[1])))
    if rate == 1:
        low = min(low, max(0.0, np.quantile(1 - (1 - sample) / specificity, ENDS[0])))
    return Share(rate, min(float(low), rate), max(float(high), rate))


def _kappas(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of each row of (true positive, false positive, false negative, true negative)."""
    tp, fp, fn, tn = counts.T
    n = counts.sum(axis=1)
    chance = (tp + fp) * (tp + fn) + (tn + fp) * (tn + fn)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n * n > chance, (n * (tp + tn) - chance) / (n * n - chance), np.nan)
