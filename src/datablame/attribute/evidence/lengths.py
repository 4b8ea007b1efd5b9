"""How long documents' answers are, from the pool as it is: no model, no text."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Inquiry, provider


class Lengths(NamedTuple):
    """Tokens of the response, those that the loss is over, a number for each document; of a pair those of both."""

    tokens: NDArray[np.float64]


@provider("lengths", Lengths, per_document=False)
def lengths(inquiry: Inquiry) -> dict[type, Lengths]:
    """Counts of the pool's file."""
    return {Lengths: Lengths(inquiry.world.pool.response_tokens[inquiry.scored].astype(np.float64))}
