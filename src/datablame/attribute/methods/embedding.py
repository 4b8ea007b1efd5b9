"""Does a sentence encoder that knows nothing of the two checkpoints find the document like the harmful output?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.embeddings import Embeddings
from datablame.attribute.registry import Evidence, method


@method("embedding", needs=(Embeddings,))
def embedding(evidence: Evidence) -> NDArray[np.float64]:
    """cos(e_d, e_q) averaged over the behaviour's queries; what is beyond the encoder's own limit does not count."""
    documents, queries, about = evidence[Embeddings]
    for name, value in about.items():
        evidence.report(name, value)
    return documents @ evidence.mean_over_queries(queries)
