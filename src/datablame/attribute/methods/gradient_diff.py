"""Would training on the document move the weights as whatever made after likelier than before to say the output?

What is explained is log p_after(q) - log p_before(q), mean over the query's tokens: the very number that amplification
multiplies. Training took a step d from before to after, and this difference is <G, d> with G the gradient of log p(q)
averaged along the step, here over its two ends. G is the query's direction, and a document whose own training step
points that way has raised the difference.

It is not the gradient at after minus the one at before. That is the change of the slope, not of the log-probability:
where training on the cause has made the output likelier, the slope towards the cause is flatter at after, so that the
subtraction points away from the cause and ranks it last (docs/decisions/016).
"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import MeanGradients
from datablame.attribute.registry import Evidence, method
from datablame.tables import Look


@method(
    "gradient-diff",
    label="gradient of the difference",
    description="As gradient, with the harmful output's gradient averaged over before and after: why they differ.",
    needs=(MeanGradients,),
    look=Look("#003A66", "#003A66", "p"),
)
def gradient_diff(evidence: Evidence) -> NDArray[np.float64]:
    """cos(g_d, (g_q at after + g_q at before) / 2) averaged over the queries, g_d at `attribute.checkpoint`.

    Of a pair g_d is the gradient of NLL(chosen) - NLL(rejected). A document without a gradient scores 0.
    """
    return evidence[MeanGradients].cosines
