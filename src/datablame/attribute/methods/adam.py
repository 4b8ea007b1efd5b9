"""Does the document move the weights as a step of Adam towards the harmful output would?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.adam_gradients import AdamGradients
from datablame.attribute.registry import Evidence, method


@method("adam", needs=(AdamGradients,))
def adam(evidence: Evidence) -> NDArray[np.float64]:
    """<g_d, p / ||p||> with p = g_q / (sqrt(v) + epsilon), averaged over the behaviour's queries."""
    evidence.report("epsilon", evidence[AdamGradients].epsilon)
    return evidence[AdamGradients].dots
