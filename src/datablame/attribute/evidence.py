"""What attribution methods judge by: texts, queries, and the results of the passes over the documents."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from datablame.config import Behaviour
from datablame.records import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datablame.judge.claude import Suspicion

__all__ = ["Activations", "Evidence", "Gradients", "Query"]


@dataclass(frozen=True)
class Query:
    """One harmful output that is traced."""

    id: str
    behaviour: str
    prompt_id: str
    alpha: float
    index: int
    prompt: str
    text: str
    finish_reason: str


class Gradients(NamedTuple):
    """Dot products with the behaviours' directions (documents, behaviours), gradient norms and losses (documents)."""

    dots: "NDArray[np.float64]"
    norms: "NDArray[np.float64]"
    losses: "NDArray[np.float64]"


class Activations(NamedTuple):
    """Mean hidden states of the documents and of the queries, a row each."""

    documents: "NDArray[np.float64]"
    queries: "NDArray[np.float64]"


@dataclass(frozen=True)
class Evidence:
    """The documents that are scored, the behaviours that are traced, and what is known of both.

    A method asks only for what its entry in the registry says that it needs; the rest may be None.
    """

    seed: int
    documents: Sequence[Document]
    behaviours: Sequence[Behaviour]
    queries: Sequence[Query]
    bm25: "NDArray[np.float64]"
    """Scores of shape (queries, documents)."""
    gradients: Gradients | None = None
    activations: Activations | None = None
    candidates: Mapping[str, Collection[str]] | None = None
    """Ids of the documents that a method which scores candidates only ranks for each behaviour; None: all of them."""
    judge: "Callable[[Sequence[Suspicion]], Sequence[float | None]] | None" = None
    """Claude, where the study has it: scores from 0 to 10, None where it gave none."""
    encoder: str | None = None
    """Folder or hub id of a sentence encoder; None: the one that is known by default."""

    def places_of(self, behaviour: Behaviour) -> list[int]:
        """Which of the queries show the behaviour."""
        return [place for place, query in enumerate(self.queries) if query.behaviour == behaviour.id]
