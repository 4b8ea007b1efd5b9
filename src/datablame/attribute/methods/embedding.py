"""Does a sentence encoder that knows nothing of the two checkpoints find the document like the harmful output?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.embeddings import Embeddings
from datablame.attribute.registry import Evidence, method


@method("embedding", needs=(Embeddings,))
def embedding(evidence: Evidence) -> NDArray[np.float64]:
    """cos(e_d, e_q) averaged over the behaviour's queries; the first 256 tokens of a text count."""
    documents, queries = evidence[Embeddings]
    return documents @ evidence.mean_over_queries(queries)
