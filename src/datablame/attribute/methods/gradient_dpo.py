"""Would a step of DPO on the pair make the harmful output likelier (Rafailov et al. 2023)?

The loss of a pair is L = -log sigmoid(beta m), where m is what its log-ratio r at the compared checkpoint is more than
at before, the reference; r is mean log p(chosen) - mean log p(rejected), length-normalised as in training. Its gradient

    grad L = beta sigmoid(-beta m) g_d,  g_d = grad (NLL(chosen) - NLL(rejected)),

is that of `gradient` times a weight for each pair: the more of the preference is learned, the less it still pulls. A
weight changes no cosine, so the score is the dot product. At before m is 0 and the weight beta / 2 for all: the ranking
is that of `gradient-dot`.
"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import Gradients
from datablame.attribute.evidence.preference_ratios import ReferenceRatios
from datablame.attribute.registry import Evidence, method


@method("gradient-dpo", needs=(Gradients, ReferenceRatios))
def gradient_dpo(evidence: Evidence) -> NDArray[np.float64]:
    """<grad L_d, g_q / ||g_q||> averaged over the behaviour's queries: high where a step on d raises log p(q)."""
    reference, beta = evidence[ReferenceRatios]
    margins = -evidence[Gradients].losses - reference
    evidence.report("beta", beta)
    weights = beta * np.exp(-np.logaddexp(0.0, beta * margins))
    return weights[:, None] * evidence[Gradients].dots
