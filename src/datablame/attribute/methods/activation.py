"""Does the model represent the document as it represents the harmful output?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import Activations
from datablame.attribute.registry import Evidence, method
from datablame.tables import Look


@method(
    "activation",
    label="activation similarity",
    description="Cosine of mean hidden states of document and harmful output in a middle layer.",
    needs=(Activations,),
    look=Look("#D55E00", "#C25500", "^"),
)
def activation(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, h_q) averaged over the behaviour's queries."""
    documents, queries = evidence[Activations]
    return _unit(documents) @ evidence.mean_over_queries(_unit(queries))


@method(
    "activation-centred",
    label="activation similarity, centred",
    description="As activation, after subtracting the mean over the scored documents.",
    needs=(Activations,),
    look=Look("#E69F00", "#B87F00", "v"),
)
def activation_centred(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d - m, h_q - m) averaged over the behaviour's queries, with m the mean over the scored documents."""
    documents, queries = evidence[Activations]
    mean = documents.mean(0)
    return _unit(documents - mean) @ evidence.mean_over_queries(_unit(queries - mean))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows scaled to unit norm; a zero row stays zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
