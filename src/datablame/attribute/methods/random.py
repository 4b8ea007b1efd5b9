"""What chance gives."""

from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence
from datablame.attribute.registry import method
from datablame.seeds import stream_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@method(
    "random",
    label="random (control)",
    description="Control: uniform random scores, keyed by seed, behaviour and document.",
    needs="nothing",
    control=True,
)
def random(evidence: Evidence) -> "NDArray[np.float64]":
    """Uniform scores in [0, 1) that depend on neither the pool nor its order."""
    import numpy as np

    return np.array(
        [
            [
                stream_key("random scores", evidence.seed, behaviour.id, document.id) / 2**128
                for behaviour in evidence.behaviours
            ]
            for document in evidence.documents
        ]
    )
