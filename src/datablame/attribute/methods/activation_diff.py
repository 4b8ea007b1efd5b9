"""Does the document's response point where harmful outputs depart from safe ones, as the before checkpoint sees them?

The direction is mean activation of harmful minus safe responses. Each harmful output is set against the safe ones to
its own prompt where there are any, so that the direction tells how the model answers and not what it was asked.
"""

from typing import TYPE_CHECKING

from datablame.attribute.evidence import Contrast, Evidence
from datablame.attribute.registry import method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datablame.study.schema import Behaviour


@method(
    "activation-diff",
    label="activation difference",
    description="Cosine of response, or chosen minus rejected, and harmful minus safe outputs, as before sees them.",
    needs="contrast",
)
def activation_diff(evidence: Evidence) -> "NDArray[np.float64]":
    """cos(h_d, mean over queries of h_q - s_q), with s_q the mean over the safe outputs to the query's prompt.

    Where that prompt has no safe output, s_q is the mean over the behaviour's; where the behaviour has none there is no
    direction, and its documents have no score. A document whose h is zero scores 0.
    """
    import numpy as np

    assert evidence.contrast is not None
    contrast = evidence.contrast
    found = np.stack([_direction(evidence, contrast, behaviour) for behaviour in evidence.behaviours], 1)
    norms = np.linalg.norm(contrast.documents, axis=1)[:, None] * np.linalg.norm(found, axis=0)
    dots = contrast.documents @ found
    scores: NDArray[np.float64] = np.where(norms == 0, 0.0, dots / np.where(norms == 0, 1.0, norms))
    return scores


def _direction(evidence: Evidence, contrast: Contrast, behaviour: "Behaviour") -> "NDArray[np.float64]":
    """NaN where nothing is safe."""
    import numpy as np

    safe = [place for place, output in enumerate(contrast.outputs) if output.behaviour == behaviour.id]
    if not safe:
        return np.full(contrast.documents.shape[1], np.nan)
    differences = []
    for place in evidence.places_of(behaviour):
        prompt = evidence.queries[place].prompt_id
        own = [place for place in safe if contrast.outputs[place].prompt_id == prompt]
        differences.append(contrast.queries[place] - contrast.safe[own or safe].mean(0))
    mean: NDArray[np.float64] = np.mean(differences, axis=0)
    return mean
