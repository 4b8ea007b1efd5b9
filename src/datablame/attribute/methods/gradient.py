"""Does the document move the weights as the harmful output does?

gradient-diff asks what made after likelier than before to say the output. What is explained is log p_after(q) - log
p_before(q), mean over the query's tokens: the very number that amplification multiplies. Training took a step d from
before to after, and this difference is <G, d> with G the gradient of log p(q) averaged along the step, here over its
two ends (docs/decisions/016). G is the query's direction: a document whose own training step points that way has
raised the difference.
"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import Gradients, MeanGradients
from datablame.attribute.registry import Evidence, method


@method("gradient", needs=(Gradients,))
def gradient(evidence: Evidence) -> NDArray[np.float64]:
    """cos(g_d, g_q) averaged over the behaviour's queries; of a pair g_d is that of NLL(chosen) - NLL(rejected)."""
    return evidence[Gradients].cosines


@method("gradient-dot", needs=(Gradients,))
def gradient_dot(evidence: Evidence) -> NDArray[np.float64]:
    """<g_d, g_q / ||g_q||> averaged over the behaviour's queries."""
    return evidence[Gradients].dots


@method("gradient-diff", needs=(MeanGradients,))
def gradient_diff(evidence: Evidence) -> NDArray[np.float64]:
    """cos(g_d, (g_q at after + g_q at before) / 2) averaged over the queries, g_d at `attribute.checkpoint`."""
    return evidence[MeanGradients].cosines
