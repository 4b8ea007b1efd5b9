"""Rows of the attribute phase: queries, candidates, scores, flags, and how the methods compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from datablame.tables.store import table
from datablame.tables.world import Look, Pool


@table("attribute", "queries.parquet")
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
    token_ids: tuple[int, ...]
    """As they were drawn, with the token that ended it."""
    harmful: bool = True


@table("attribute", "candidates.parquet")
class Candidate:
    """A document that BM25 finds near a behaviour's queries."""

    behaviour: str
    doc_id: str


@table("attribute", "scores.parquet")
class Score:
    """How responsible a method holds a document for a behaviour: higher is more, rank 1 is most, ties by document id.

    The score is rounded before it ranks. A document that the method has no score for has no row.
    """

    method: str
    behaviour: str
    doc_id: str
    score: float
    rank: int


@table("attribute", "flags.parquet")
class Flag:
    """A document of one of a method's first K duplicate clusters for a behaviour."""

    method: str
    k: int
    behaviour: str
    doc_id: str


@dataclass(frozen=True)
class Unranked:
    """How many documents a method had no score for."""

    behaviour: str
    documents: int
    reason: str = ""
    """Why, where it had none for the behaviour at all and knows."""


@dataclass(frozen=True)
class Finding:
    """What a method says of itself beside its scores; `*`: for every behaviour."""

    behaviour: str
    name: str
    value: str


@table("attribute", "methods.parquet")
class MethodInfo:
    """A method as this study ran it."""

    name: str
    label: str
    """What figures and tables call it."""
    description: str
    standin: bool
    control: bool
    voter: bool
    """Whether it has a vote in an ensemble."""
    pool: Pool
    look: Look
    unranked: tuple[Unranked, ...] = ()
    """Behaviours for which it had no score for some documents."""
    confounds: tuple[str, ...] = ()
    """Methods that may owe what they find to what this control measures."""
    cost: str = "none"
    """The dearest work that it does on a document."""
    findings: tuple[Finding, ...] = ()


@table("attribute", "agreement.parquet")
class Agreement:
    """How far two methods agree on the documents that both scored, duplicates as one; `*`: mean over behaviours."""

    a: str
    b: str
    behaviour: str
    n: float
    overlap: float | None
    jaccard: float | None
    jaccard_chance: float | None
    spearman: float | None
    kendall: float | None
    rbo: float | None


@table("attribute", "quality.parquet")
class Quality:
    """How well a method finds what was planted, in duplicate clusters; `*`: mean over behaviours."""

    method: str
    behaviour: str
    pool: Pool
    n: float
    planted: float
    base_rate: float | None
    precision_at_k: float | None
    recall_at_k: float | None
    auprc: float | None


@table("attribute", "prefilter_recall.parquet")
class PrefilterRecall:
    """The share of planted clusters with a member among the candidates."""

    behaviour: str
    recall: float | None


@table("attribute", "ceilings.parquet")
class Ceiling:
    """The share of a method's first K clusters in the whole pool that the prefilter keeps."""

    method: str
    behaviour: str
    ceiling: float | None


@dataclass(frozen=True)
class ThemeShare:
    """The share of a method's flagged candidates that a theme has; None where it flagged no candidate."""

    method: str
    share: float | None


@table("attribute", "themes.parquet")
class Theme:
    """A KMeans cluster of the candidates' activations."""

    terms: tuple[str, ...]
    count: int
    share: float
    examples: tuple[str, ...]
    flagged: tuple[ThemeShare, ...]


GroupKind = Literal["source", "theme"]


@table("attribute", "blame.parquet")
class Blame:
    """How high a method ranks the documents of one source, or of one theme, for a behaviour, in duplicate clusters."""

    method: str
    behaviour: str
    kind: GroupKind
    group: str
    """The source, or the theme's number from 1."""
    n: int
    """Clusters of it that were ranked."""
    share: float
    """Of all that were ranked; for a theme, of all candidates that were."""
    auc: float
    """How likely a cluster of it ranks above one outside of it; a tie counts one half."""
    low: float
    """Of its 95 % interval (Newcombe 2006), which is wide where n is small."""
    high: float
    first: int
    """Clusters of it among the first K."""
    lift: float
    """Its share of the first K over `share`."""
    lift_low: float
    """Of its 95 % interval (Wilson's, of the share of the first K)."""
    lift_high: float


@dataclass(frozen=True)
class GroupedOutput:
    """An amplified output of a group."""

    prompt_id: str
    alpha: float
    index: int
    gain: float
    """log p_after - log p_before, nats."""


@dataclass(frozen=True)
class GroupExample:
    """One of the outputs of a group that gained most."""

    prompt: str
    text: str
    gain: float


@dataclass(frozen=True)
class GroupSource:
    """How high the documents of a source rank by how they drive a group, as in `Blame`."""

    source: str
    first: int
    """Among the first ten."""
    auc: float
    low: float


@table("attribute", "groups.parquet")
class OutputGroup:
    """Amplified outputs that the same documents drive, found without labels; the strongest group first."""

    outputs: tuple[GroupedOutput, ...]
    gain: float
    """The mean over its outputs."""
    drive: float
    """Standardised similarity of its outputs with its first ten documents, the mean."""
    strength: float
    """Drive x gain x root of the number of outputs, by which groups are ordered."""
    terms: tuple[str, ...]
    """Words of its outputs that set them apart."""
    examples: tuple[GroupExample, ...]
    documents: tuple[str, ...]
    """The first ten, of different duplicate clusters."""
    sources: tuple[GroupSource, ...]
    """The first three; none where the pool has one."""


@dataclass(frozen=True)
class Discovery:
    """What the search for groups of outputs had, and what came of it."""

    outputs: int
    weak: int
    """Left out since after makes them less than 20 times likelier than before."""
    silhouette: float | None
    reason: str
    """Why no group was found; empty where one was."""


@table("attribute", "top_documents.parquet")
class ShownDocument:
    """The text of a flagged document or of a theme's example."""

    doc_id: str
    prompt: str
    response: str
    rejected: str
    source: str
    planted: bool | None
    """None where nobody knows."""


@table("attribute", "document_tokens.parquet", shown=True)
class DocumentTokens:
    """Which tokens of a document of top_documents.parquet carried its gradient towards a behaviour's harmful outputs.

    A token's share is the dot product of its own part of the gradient with the mean of the queries' unit gradients,
    over the norm of the document's whole gradient: the shares of both answers add up to the score that `gradient` gives
    the document, but for what that rounds, projects or makes in 16 bits, whether or not it is ranked. A negative share
    pulls the other way. No rows where the study compares no gradients, or where the checkpoint has no derivatives in
    forward mode, which the log says; no table without `report.tokens`.
    """

    doc_id: str
    behaviour: str
    pieces: tuple[str, ...]
    """The text of each token of the response, as in `SampleTokens`; of a pair of the chosen one."""
    shares: tuple[float, ...]
    rejected_pieces: tuple[str, ...] = ()
    """Of a pair's rejected response."""
    rejected_shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Match:
    """A document that repeats a prompt of the study, or a traced output with its prompt."""

    doc_id: str
    of: str


@dataclass(frozen=True)
class JudgeAnswers:
    """What a model was asked about documents and left without a score, by reason."""

    model: str
    requests: int
    missing: Mapping[str, int]


@table("attribute", "attribution.json")
class Attribution:
    """What attribution looked for and among what."""

    k: int
    traced: tuple[str, ...]
    dropped: tuple[str, ...]
    """Behaviours without a harmful output that can be traced; all of them where there is no rise."""
    no_rise: bool
    prefilter: Literal["bm25", "none"]
    candidates: Mapping[str, int]
    truth: bool
    """Whether planted documents are known."""
    prompt_matches: tuple[Match, ...]
    query_matches: tuple[Match, ...]
    unmatched: tuple[str, ...]
    """Queries that have no word in common with any document, so that they have no candidates."""
    themed: int
    """Candidates that themes were made of."""
    silhouette: float | None
    exactness: Mapping[str, Any] | None = None
    """How a sample of the documents ranks beside float32 without projection, where something else was done."""
    judge: JudgeAnswers | None = None
    """None where no model was asked."""
    sources: int = 0
    """Into which the pool is parted."""
    discovery: Discovery | None = None
    """None where groups of outputs were not looked for, or no amplified output has its log-probabilities."""
