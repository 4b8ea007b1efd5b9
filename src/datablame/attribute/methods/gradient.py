"""Would training on the document move the weights as training on the harmful output would? One pass, four scores."""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import Gradients
from datablame.attribute.registry import Evidence, method
from datablame.tables import Look

_MAY_OWE = ("gradient",)


@method(
    "gradient",
    label="gradient similarity",
    description="Cosine of the loss gradients of document and harmful output in the middle blocks' Linear weights.",
    needs=(Gradients,),
    look=Look("#0072B2", "#0072B2", "o"),
)
def gradient(evidence: Evidence) -> NDArray[np.float64]:
    """cos(g_d, g_q) averaged over the behaviour's queries; a document without a gradient scores 0."""
    return evidence[Gradients].cosines


@method(
    "gradient-dot",
    label="gradient dot product",
    description="As gradient, without dividing by the norm of the document's gradient.",
    needs=(Gradients,),
    look=Look("#56B4E9", "#2B8AC0", "D"),
)
def gradient_dot(evidence: Evidence) -> NDArray[np.float64]:
    """<g_d, g_q / ||g_q||> averaged over the behaviour's queries."""
    return evidence[Gradients].dots


@method(
    "loss",
    label="loss (control)",
    description="Control: the document's own loss; looks at no behaviour.",
    needs=(Gradients,),
    look=Look("#B08D6E", "#8C6B4F", "<"),
    control=True,
    confounds=_MAY_OWE,
)
def loss(evidence: Evidence) -> NDArray[np.float64]:
    """The mean NLL of the document's response, in nats, the same for every behaviour."""
    return np.repeat(evidence[Gradients].losses[:, None], len(evidence.behaviours), axis=1)


@method(
    "gradient-norm",
    label="gradient norm (control)",
    description="Control: the norm of the document's gradient; looks at no behaviour.",
    needs=(Gradients,),
    look=Look("#6E5240", "#5A4334", ">"),
    control=True,
    confounds=_MAY_OWE,
)
def gradient_norm(evidence: Evidence) -> NDArray[np.float64]:
    """||g_d||, the same for every behaviour."""
    return np.repeat(evidence[Gradients].norms[:, None], len(evidence.behaviours), axis=1)
