"""Does the document light up the model as the harmful output does, in what sets documents apart?

A few directions hold most of the variance of hidden states, and cosines say little else (Ethayarajh 2019). Whitening
divides every direction by the spread of the documents along it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import Activations
from datablame.attribute.registry import Evidence, method

_ROWS = 4096
_LEAST_SHRINKAGE = 1e-4
"""Where Ledoit and Wolf's estimate vanishes, as it does on two documents, the covariance is still inverted."""

_ROUNDING = 1e-6
"""Of states, relative to their size: a smaller spread is none."""


class Shrunk(NamedTuple):
    """A covariance S shrunk towards a multiple of the identity: (1 - shrinkage) S + shrinkage tr(S)/width I."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    shrinkage: float


@method("activation-whitened", needs=(Activations,))
def activation_whitened(evidence: Evidence) -> NDArray[np.float64]:
    """cos(W(h_d - m), W(h_q - m)) averaged over the behaviour's queries, with W'W the inverse of `shrunk_covariance`.

    No score where the documents' states do not differ.
    """
    from scipy.linalg import solve_triangular

    documents, queries = evidence[Activations]
    mean, covariance, shrinkage = shrunk_covariance(documents)
    if not covariance.any():
        why = "the hidden states of the scored documents do not differ"
        return np.stack([evidence.no_score(behaviour, why) for behaviour in evidence.behaviours], 1)
    evidence.report("shrinkage of the covariance", shrinkage)
    factor = np.linalg.cholesky(covariance)

    def whitened(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        white: NDArray[np.float64] = solve_triangular(factor, (rows - mean).T, lower=True).T
        return white

    towards = whitened(queries)
    return np.concatenate([evidence.mean_cosines(whitened(rows), towards) for rows in _blocks(documents)])


def shrunk_covariance(rows: NDArray[np.float64]) -> Shrunk:
    """The rows' mean and covariance, shrunk as Ledoit and Wolf (2004) estimate, by at least 1e-4.

    With S = 1/n sum x x' of the centred rows and t = tr(S)/width, the shrinkage is the estimated squared error of S,
    (1/n sum |x|^4 - |S|^2) / n, over |S - tI|^2, and at most 1. Rows are read in blocks.
    """
    n, width = rows.shape
    mean = rows.mean(0)
    covariance, fourth = np.zeros((width, width)), 0.0
    for block in _blocks(rows):
        centred = block - mean
        covariance += centred.T @ centred / n
        fourth += float((np.square(centred).sum(1) ** 2).sum()) / n
    target = covariance.trace() / width
    if target <= _ROUNDING**2 * np.square(mean).mean():
        return Shrunk(mean, np.zeros_like(covariance), 0.0)
    squares = float(np.square(covariance).sum())
    error, distance = (fourth - squares) / n, squares - width * target**2
    shrinkage = 1.0 if error >= distance else max(error / distance, _LEAST_SHRINKAGE)
    shrunk = (1 - shrinkage) * covariance
    shrunk[np.diag_indices(width)] += shrinkage * target
    return Shrunk(mean, shrunk, shrinkage)


def _blocks(rows: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
