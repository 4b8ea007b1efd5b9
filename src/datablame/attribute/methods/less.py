"""Would training on the document, as Adam trains a LoRA adapter, make the harmful output likelier?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.warmup_gradients import WarmupGradients
from datablame.attribute.registry import Evidence, method


@method("less", needs=(WarmupGradients,))
def less(evidence: Evidence) -> NDArray[np.float64]:
    """sum_t eta_t cos(Adam's step for d, g_q) over the checkpoints of a warm-up, averaged over the queries."""
    warmup = evidence[WarmupGradients]
    evidence.report("warm-up", f"{warmup.documents} documents, {warmup.steps} steps")
    if not warmup.learning_rates:
        reason = "its warm-up diverged; lower attribute.warmup.learning_rate"
        return np.stack([evidence.no_score(each, reason) for each in evidence.behaviours], 1)
    evidence.report("learning rates", ", ".join(f"{rate:.3g}" for rate in warmup.learning_rates))
    return warmup.scores
