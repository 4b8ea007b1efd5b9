"""What would training without the document change for the harmful output (Koh and Liang, arXiv 1703.04730)?

Influence is <g_d, H^-1 g_q> with H the curvature of the loss, which is taken from the scored documents' own gradients.
"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.curvature import EkfacInfluence, FisherInfluence, Influence, WhitenedSimilarity
from datablame.attribute.registry import Evidence, method


@method("fisher", needs=(FisherInfluence,))
def fisher(evidence: Evidence) -> NDArray[np.float64]:
    """<g_d, H^-1 g_q / ||g_q||> averaged over the behaviour's queries, H the diagonal of the Fisher matrix, damped."""
    return _scores(evidence, evidence[FisherInfluence])


@method("ek-fac", needs=(EkfacInfluence,))
def ekfac(evidence: Evidence) -> NDArray[np.float64]:
    """The same with H diagonal in the Kronecker eigenbasis."""
    return _scores(evidence, evidence[EkfacInfluence])


@method("trackstar", needs=(WhitenedSimilarity,))
def trackstar(evidence: Evidence) -> NDArray[np.float64]:
    """cos(H^-1/2 g_d, H^-1/2 g_q) averaged over the behaviour's queries, H as in ek-fac."""
    return _scores(evidence, evidence[WhitenedSimilarity])


def _scores(evidence: Evidence, found: Influence) -> NDArray[np.float64]:
    """A column for each behaviour, with what should be known of the curvature."""
    for name, value in found.findings.items():
        evidence.report(name, value)
    columns = [
        evidence.no_score(behaviour, found.reasons[behaviour.id]) if behaviour.id in found.reasons else column
        for behaviour, column in zip(evidence.behaviours, found.scores.T, strict=True)
    ]
    return np.stack(columns, 1)
