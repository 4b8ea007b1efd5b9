"""What chance gives."""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Evidence, method
from datablame.seeds import stream_key


@method("random", exact=True)
def random(evidence: Evidence) -> NDArray[np.float64]:
    """Uniform scores in [0, 1) that depend on neither the pool nor its order."""
    key, behaviours = ("random scores", evidence.seed), [behaviour.id for behaviour in evidence.behaviours]
    return np.array([[stream_key(*key, each, doc_id) / 2**128 for each in behaviours] for doc_id in evidence.ids])
