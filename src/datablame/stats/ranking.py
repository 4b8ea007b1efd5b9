"""How far rankings agree with one another and with the truth; pure functions of arrays."""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ranked = Sequence[Hashable] | NDArray[np.int64]
_NEGLIGIBLE = 1e-18


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two score vectors; NaN where one is constant."""
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic) if _both_vary(a, b) else float("nan")


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b of two score vectors, which corrects for ties; NaN where one is constant."""
    from scipy import stats

    return float(stats.kendalltau(a, b, variant="b").statistic) if _both_vary(a, b) else float("nan")


def rank_biased_overlap(a: Ranked, b: Ranked, p: float = 0.95) -> float:
    """Extrapolated rank-biased overlap of two rankings of equal length without ties, best first.

    RBO_ext = X_k / k p^k + (1 - p) / p sum_{d=1..k} X_d / d p^d, with X_d the overlap of the first d (Webber, Moffat
    and Zobel 2010, equation 32). Depths whose weights come to less than 1e-18 are not read. Raises ValueError where
    lengths differ, an item stands twice, or both are empty.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"rankings have {len(a)} and {len(b)} items; they need the same number, at least 1")
    first, second = set[Hashable](), set[Hashable]()
    shared, total, weight = 0, 0.0, 1.0
    for depth, (x, y) in enumerate(zip(a, b, strict=True), 1):
        if x in first or y in second:
            raise ValueError("a ranking names an item twice")
        first.add(x)
        second.add(y)
        shared += 1 if x == y else (x in second) + (y in first)
        weight *= p
        total += shared / depth * weight
        if weight < _NEGLIGIBLE:
            break
    return shared / depth * weight + (1 - p) / p * total


def overlap(a: Collection[Hashable], b: Collection[Hashable]) -> int:
    """How many items are in both sets."""
    return len(set(a) & set(b))


def jaccard(a: Collection[Hashable], b: Collection[Hashable]) -> float:
    """Size of the intersection over size of the union; NaN for two empty sets."""
    union = len(set(a) | set(b))
    return overlap(a, b) / union if union else float("nan")


def expected_jaccard(k: int, n: int) -> float:
    """The mean Jaccard of two random k-sets of n items, E[X / (2k - X)], X ~ Hypergeometric(n, k, k); 1 <= k <= n."""
    from scipy.stats import hypergeom

    if not 1 <= k <= n:
        raise ValueError(f"k = {k} is not between 1 and n = {n}")
    x = np.arange(max(0, 2 * k - n), k + 1)
    return float((hypergeom.pmf(x, n, k, k) * x / (2 * k - x)).sum())


def precision_at(ranked: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Share of the first k that are relevant; places that a shorter ranking leaves empty count as misses."""
    return len(set(ranked[:k]) & set(relevant)) / k


def recall_at(ranked: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Share of the relevant items among the first k; NaN where nothing is relevant."""
    return len(set(ranked[:k]) & set(relevant)) / len(set(relevant)) if relevant else float("nan")


def average_precision(relevant: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve as a sum of steps, equal scores taken together; NaN without positives."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(relevant, scores)) if np.any(relevant) else float("nan")


def _both_vary(a: ArrayLike, b: ArrayLike) -> bool:
    return all(np.size(x) > 1 and np.ptp(np.asarray(x)) > 0 for x in (a, b))
