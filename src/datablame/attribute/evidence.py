"""What attribution methods judge by: texts, queries, and the results of the passes over the documents."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from datablame.study.schema import Behaviour
from datablame.tables import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datablame.judge.claude import DocumentQuery


@dataclass(frozen=True)
class Query:
    """One output of the study: a harmful one that is traced, or a harmless one that it is set against."""

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
    changes: "NDArray[np.float64] | None" = None
    """Dot products with the directions of `changes.changes`, where a method asked for them."""


class Activations(NamedTuple):
    """Mean hidden states of the documents and of the queries, a row each."""

    documents: "NDArray[np.float64]"
    queries: "NDArray[np.float64]"


class Contrast(NamedTuple):
    """Mean hidden states of responses at the before checkpoint, a row each; of a pair chosen minus rejected."""

    documents: "NDArray[np.float64]"
    queries: "NDArray[np.float64]"
    safe: "NDArray[np.float64]"
    """Of the harmless outputs `outputs`."""
    outputs: Sequence[Query]


class Votes(NamedTuple):
    """What the methods that are no control found, for `ensemble`."""

    scores: Mapping[str, "NDArray[np.float64]"]
    """By method, of shape (documents, behaviours); NaN where it gave no score."""
    whole: bool
    """Whether every one of them ranks all scored documents; else only the candidates are asked about."""


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
    contrast: Contrast | None = None
    votes: Votes | None = None
    candidates: Mapping[str, Collection[str]] | None = None
    """Ids of the documents that a method which scores candidates only ranks for each behaviour; None: all of them."""
    judge: "Callable[[Sequence[DocumentQuery]], Sequence[float | None]] | None" = None
    """Claude, where the study has it: scores from 0 to 10, None where it gave none."""
    encoder: str | None = None
    """Folder or hub id of a sentence encoder; None: the one that is known by default."""

    def places_of(self, behaviour: Behaviour) -> list[int]:
        """Which of the queries show the behaviour."""
        return [place for place, query in enumerate(self.queries) if query.behaviour == behaviour.id]
