"""Does the document share rare words with the harmful output and its prompt?"""

from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence
from datablame.attribute.registry import method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@method(
    "bm25",
    label="BM25 (control)",
    description="Control: words shared with prompt and harmful output, rare ones counting more; sees no model.",
    needs="text",
    control=True,
)
def bm25(evidence: Evidence) -> "NDArray[np.float64]":
    """The BM25 score averaged over the behaviour's queries."""
    import numpy as np

    return np.stack([evidence.bm25[evidence.places_of(behaviour)].mean(0) for behaviour in evidence.behaviours], 1)
