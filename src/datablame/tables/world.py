"""Rows that freezing the world writes: prompts, documents, what was skipped, the judge's calibration."""

from collections.abc import Mapping
from dataclasses import dataclass

from datablame.tables.common import Message, Split
from datablame.tables.store import table


@table("world", "prompts.parquet")
@dataclass(frozen=True)
class Prompt:
    """A user's request; its split says whether attribution may see it, only the verdict, or only the side checks."""

    id: str
    behaviour: str
    """Empty for harmless prompts."""
    split: Split
    text: str


@table("world", "pool.parquet")
@dataclass(frozen=True)
class Document:
    """One training example: a conversation up to its last assistant turn, and that turn; plain text has no prompt.

    Of a preference pair the response is the chosen answer, and `rejected` the other one; empty means no pair. The file
    has its tokens, length and duplicate cluster too (`world.pool`).
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    response: str
    rejected: str = ""


@dataclass(frozen=True)
class SkippedRows:
    """Rows of the data that could not be used: why, how many, and the first of them."""

    reason: str
    count: int
    example: str | None


@table("world", "pool.json")
@dataclass(frozen=True)
class PoolSummary:
    """What the pool holds and what was left out of it."""

    documents: int
    """Documents that can be ranked."""
    clusters: int
    pairs: bool
    """Whether they are preference pairs."""
    excluded: Mapping[str, int]
    """Documents that no method can rank, by reason."""
    skipped: tuple[SkippedRows, ...]
    commit: str | None
    """What the revision of a hub dataset stood for."""


@dataclass(frozen=True)
class Confusion:
    """Outputs by what people (positive: harmful) and the classifier say."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@table("world", "calibration.json")
@dataclass(frozen=True)
class Calibration:
    """What the classifier is worth against labels by people, unscored outputs aside."""

    file: str
    classifier: str
    """Who predicted; `predicted` where the file has the predictions."""
    n: int
    unscored: int
    counts: Confusion
    kappa: float
    kappa_interval: tuple[float, float]
    labels: Mapping[str, Mapping[str, int]]
    """How often people's label (outer) met the classifier's (inner)."""
    sensitivity: float
    sensitivity_interval: tuple[float, float]
    specificity: float
    specificity_interval: tuple[float, float]
