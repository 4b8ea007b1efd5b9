"""Did the document's own training steps, at every checkpoint, go where the harmful output gets likelier?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.checkpoint_gradients import CheckpointGradients
from datablame.attribute.registry import Evidence, method


@method("tracin", needs=(CheckpointGradients,))
def tracin(evidence: Evidence) -> NDArray[np.float64]:
    """sum_t eta_t <g_t(d), g_t(q)> averaged over the queries, each at unit norm over all checkpoints together."""
    _, learning_rates = evidence[CheckpointGradients]
    evidence.report("learning rates", ", ".join(f"{rate:.3g}" for rate in learning_rates))
    return evidence[CheckpointGradients].dots
