"""Does the model represent the document as it represents the harmful output?"""

from typing import TYPE_CHECKING

from datablame.attribute.evidence import Activations, Evidence
from datablame.attribute.registry import method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@method(
    "activation",
    label="activation similarity",
    description="Cosine of mean hidden states of document and harmful output in a middle layer.",
    needs="activations",
)
def activation(evidence: Evidence) -> "NDArray[np.float64]":
    """cos(h_d, h_q) averaged over the behaviour's queries."""
    return _cosines(evidence, _activations(evidence))


@method(
    "activation-centred",
    label="activation similarity, centred",
    description="As activation, after subtracting the mean over the scored documents.",
    needs="activations",
)
def activation_centred(evidence: Evidence) -> "NDArray[np.float64]":
    """cos(h_d - m, h_q - m) averaged over the behaviour's queries, with m the mean over the scored documents."""
    documents, queries = _activations(evidence)
    mean = documents.mean(0)
    return _cosines(evidence, Activations(documents - mean, queries - mean))


def _activations(evidence: Evidence) -> Activations:
    assert evidence.activations is not None
    return evidence.activations


def _cosines(evidence: Evidence, activations: Activations) -> "NDArray[np.float64]":
    import numpy as np

    documents, queries = _unit(activations.documents), _unit(activations.queries)
    directions = [queries[evidence.places_of(behaviour)].mean(0) for behaviour in evidence.behaviours]
    scores: NDArray[np.float64] = documents @ np.stack(directions, 1)
    return scores


def _unit(rows: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Rows scaled to unit norm; a zero row stays zero."""
    import numpy as np

    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
