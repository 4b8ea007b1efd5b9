"""The rows that cross phase borders; each is written to a table or a journal under these field names."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "EVERY",
    "LABELS",
    "Arm",
    "Document",
    "Intervention",
    "Label",
    "LabelName",
    "Message",
    "Prompt",
    "Protocol",
    "Rate",
    "Sample",
    "Score",
    "Split",
]

LabelName = Literal["harmful", "refused", "harmless", "incoherent", "unscored"]
LABELS: tuple[LabelName, ...] = ("harmful", "refused", "harmless", "incoherent", "unscored")
Split = Literal["attribution", "held-out", "harmless"]
Protocol = Literal["retrain", "continue"]
Intervention = Literal["none", "remove", "swap", "drop-source"]
"""`remove`: fillers for documents; `swap`: a pair's answers exchanged; `drop-source`: fillers for whole sources."""

EVERY = "*"
"""Stands for "all prompts" or "all behaviours" in a pooled row."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A user's request; its split says whether attribution may see it, only the verdict, or only the side checks."""

    id: str
    behaviour: str
    split: Split
    text: str


@dataclass(frozen=True)
class Sample:
    """One generated output; the log-probabilities are sums over its tokens, in nats, None when not asked for."""

    prompt_id: str
    behaviour: str
    split: Split
    alpha: float
    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    log_p_after: float | None = None
    log_p_before: float | None = None
    log_q: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Label:
    """What a classifier says of one output; `reason` is the rule that decided, or why it is unscored."""

    label: LabelName
    classifier: str
    reason: str


@dataclass(frozen=True)
class Document:
    """One training example: a conversation up to its last assistant turn, and that turn; plain text has no prompt.

    Of a preference pair the response is the chosen answer, and `rejected` the other one; empty means no pair.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    response: str
    rejected: str = ""


@dataclass(frozen=True)
class Score:
    """How responsible a method holds a document for a behaviour: higher is more, rank 1 is most."""

    doc_id: str
    behaviour: str
    score: float
    rank: int


@dataclass(frozen=True)
class Arm:
    """One data intervention under one protocol, trained with one seed; `fillers` stand where `removed` stood.

    Under `swap` what was removed is the order of a pair's answers: the pairs stand there exchanged, without fillers.
    """

    arm: str
    protocol: Protocol
    k: int
    seed: int
    intervention: Intervention
    removed: tuple[str, ...]
    fillers: tuple[str, ...]


@dataclass(frozen=True)
class Rate:
    """The labels of one cell counted, the harmful rate among the scored and its Wilson 95 % interval."""

    prompt_id: str
    behaviour: str
    split: str
    alpha: float
    n: int
    harmful: int
    refused: int
    harmless: int
    incoherent: int
    unscored: int
    rate: float | None
    low: float | None
    high: float | None
