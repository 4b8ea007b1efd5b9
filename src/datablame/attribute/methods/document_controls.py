"""What a document is worth without a look at the behaviour: controls that a method has to beat."""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import Gradients
from datablame.attribute.evidence.lengths import Lengths
from datablame.attribute.registry import Evidence, method


@method("loss", needs=(Gradients,))
def loss(evidence: Evidence) -> NDArray[np.float64]:
    """The mean NLL of the document's response, in nats."""
    return evidence.for_every_behaviour(evidence[Gradients].losses)


@method("gradient-norm", needs=(Gradients,))
def gradient_norm(evidence: Evidence) -> NDArray[np.float64]:
    """||g_d||."""
    return evidence.for_every_behaviour(evidence[Gradients].norms)


@method("length", needs=(Lengths,), exact=True)
def length(evidence: Evidence) -> NDArray[np.float64]:
    """The tokens of the document's response."""
    return evidence.for_every_behaviour(evidence[Lengths].tokens)
