"""Would training on the document move the weights as training on the harmful output would? One pass, four scores."""

from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence, Gradients
from datablame.attribute.registry import method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@method(
    "gradient",
    label="gradient similarity",
    description="Cosine of the loss gradients of document and harmful output in the middle blocks' Linear weights.",
    needs="gradients",
)
def gradient(evidence: Evidence) -> "NDArray[np.float64]":
    """cos(g_d, g_q) averaged over the behaviour's queries; a document without a gradient scores 0."""
    import numpy as np

    found = _gradients(evidence)
    dots, norms = found.dots, found.norms[:, None]
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


@method(
    "gradient-dot",
    label="gradient dot product",
    description="As gradient, without dividing by the norm of the document's gradient.",
    needs="gradients",
)
def gradient_dot(evidence: Evidence) -> "NDArray[np.float64]":
    """<g_d, g_q / ||g_q||> averaged over the behaviour's queries."""
    return _gradients(evidence).dots


@method(
    "loss",
    label="loss (control)",
    description="Control: the document's own loss; looks at no behaviour.",
    needs="gradients",
    control=True,
)
def loss(evidence: Evidence) -> "NDArray[np.float64]":
    """The mean NLL of the document's response, in nats, the same for every behaviour."""
    return _for_every_behaviour(_gradients(evidence).losses, evidence)


@method(
    "gradient-norm",
    label="gradient norm (control)",
    description="Control: the norm of the document's gradient; looks at no behaviour.",
    needs="gradients",
    control=True,
)
def gradient_norm(evidence: Evidence) -> "NDArray[np.float64]":
    """||g_d||, the same for every behaviour."""
    return _for_every_behaviour(_gradients(evidence).norms, evidence)


def _gradients(evidence: Evidence) -> Gradients:
    assert evidence.gradients is not None
    return evidence.gradients


def _for_every_behaviour(scores: "NDArray[np.float64]", evidence: Evidence) -> "NDArray[np.float64]":
    import numpy as np

    return np.repeat(scores[:, None], len(evidence.behaviours), axis=1)
