"""Rows that freezing the world writes; first what rows of several phases have inside: a message, a label, a look."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from datablame.tables.store import table

LabelName = Literal["harmful", "refused", "harmless", "incoherent", "unscored"]
LABELS: tuple[LabelName, ...] = ("harmful", "refused", "harmless", "incoherent", "unscored")
Split = Literal["attribution", "held-out", "harmless"]
Protocol = Literal["retrain", "continue"]
InterventionKind = Literal["none", "remove", "swap", "drop-source"]
"""`remove`: fillers for documents; `swap`: a pair's answers exchanged; `drop-source`: fillers for whole sources."""
Pool = Literal["whole", "candidates"]
"""Which documents a method ranks."""
Role = Literal["after", "baseline", "again", "random", "control", "method"]
"""What an arm is in the comparison: `after` is not trained; the others are compared with `random` and `baseline`;
`again` is the baseline on other seeds; a `control` is no method's flagged set; a `method` is in the family of tests
unless it is a control itself."""
EVERY = "*"
"""Stands for "all prompts" or "all behaviours" in a pooled row."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Look:
    """How figures draw a method or arm: `fill` for its marker, `ink` for its lines and words, its marker."""

    fill: str
    ink: str
    marker: str


_FILLS = ("#9A86C8", "#4DAF4A", "#F29E7E", "#C9B400", "#5FC7D9")
_INKS = ("#6F57A8", "#2F7F2D", "#B4623F", "#7D7000", "#1F7F91")
_MARKERS = ("h", "d", "8", "p", "H")


def look_of(name: str) -> Look:
    """A fill, an ink and a marker by the checksum of a name that brings no look of its own."""
    marker, colour = divmod(zlib.crc32(name.encode()) % (len(_FILLS) * len(_MARKERS)), len(_FILLS))
    return Look(_FILLS[colour], _INKS[colour], _MARKERS[marker])


@dataclass(frozen=True)
class Label:
    """What a classifier says of one output; `reason` is the rule that decided, or why it is unscored."""

    label: LabelName
    classifier: str
    reason: str


@table("world", "prompts.parquet")
class Prompt:
    """A user's request; its split says whether attribution may see it, only the verdict, or only the side checks."""

    id: str
    behaviour: str
    """Empty for harmless prompts."""
    split: Split
    text: str


@table("world", "pool.parquet")
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
class SharedTokens:
    """The tokens that both checkpoints can read and write; pairs are of before and after."""

    tokenizer: Literal["before", "after"]
    """Whose tokenizer cuts texts, with the chat template and the special tokens of after."""
    vocabulary_size: int
    """One more than the highest id that is drawn."""
    masked_ids: tuple[int, ...]
    """Ids below it that are never drawn: they have no name, or another one, in one of the tokenizers."""
    stop_ids: tuple[int, ...]
    """The ends of outputs of both."""
    eos: tuple[str | None, str | None]
    rows: tuple[int, int]
    """Of the embeddings."""
    only_before: tuple[str, ...]
    """Added tokens that after's tokenizer does not have, or not at this id."""
    only_after: tuple[str, ...]


@dataclass(frozen=True)
class ChatFormat:
    """What the chat template was seen to do."""

    turn_end: str | None
    """The token that ends an answer, and an output; None: the template writes none, and EOS stands for it."""
    bos: Literal["template", "tokenizer", "none"]
    """Who puts the beginning of sequence before a conversation."""
    generation_prompt: str
    """What stands between a user's text and an output."""
    extra: str
    """What stands before outputs but not before the answers of documents: a thought that the prompt opens."""
    request_ignored: bool
    """Whether the template leaves the generation prompt out, so that it is taken from a conversation."""
    roles: tuple[str, ...]
    """Which of system, developer and tool it writes, beside user and assistant."""
    date: str | None
    """The day that it is told, where it asks for one."""
    unprompted: str
    """What stands before the answers of documents but not before outputs: an empty thought, the channel of answers."""


@dataclass(frozen=True)
class SkippedRows:
    """Rows of the data that could not be used: why, how many, and the first of them."""

    reason: str
    count: int
    example: str | None


@dataclass(frozen=True)
class FileRows:
    """A file of the data, or a split of a hub dataset: its rows, the documents made of them, what was left out."""

    file: str
    rows: int
    documents: int
    """Those of the subset; a row that is neither here nor skipped is not in it."""
    skipped: tuple[SkippedRows, ...]


@dataclass(frozen=True)
class DataSummary:
    """What the data holds, before anything is rendered or tokenised."""

    files: tuple[FileRows, ...]
    other_files: tuple[str, ...]
    """Files of a folder that belong to other splits or subsets, and are not read."""
    unread: Mapping[str, int]
    """Columns, or keys of messages, with text that is in no document, and in how many rows."""
    renamed: int
    """Rows whose id another text has too; theirs is made of the id and the text."""
    commit: str | None
    """What the revision of a hub dataset stood for."""

    @property
    def skipped(self) -> tuple[SkippedRows, ...]:
        """Rows left out by reason, of all files together, with the first of each."""
        found = dict[str, SkippedRows]()
        for rows in (rows for file in self.files for rows in file.skipped):
            before = found.get(rows.reason, replace(rows, count=0))
            found[rows.reason] = replace(before, count=before.count + rows.count)
        return tuple(found.values())


@dataclass(frozen=True)
class LargestCluster:
    """The largest duplicate cluster: how many documents it has, and the first of them."""

    documents: int
    first: str


@table("world", "pool.json")
class PoolSummary:
    """What the pool holds and what was left out of it."""

    documents: int
    """Documents that can be ranked."""
    clusters: int
    largest: LargestCluster | None
    """None where no document has a near copy."""
    pairs: bool
    """Whether they are preference pairs."""
    excluded: Mapping[str, int]
    """Documents that no method can rank, by reason."""
    data: DataSummary


@dataclass(frozen=True)
class LayerDistance:
    """Frobenius norms of what a layer has in both checkpoints, and of the difference."""

    layer: str
    """The block's name in the model, or the module's outside of blocks."""
    before: float
    after: float
    difference: float


@dataclass(frozen=True)
class SeenWeights:
    """What the files of a checkpoint hold."""

    precision: str
    """The coarsest type that its weights went through, as they are stored or held."""
    unread: int
    """Tensors that the model has no place for."""
    first_unread: str | None


@dataclass(frozen=True)
class Distance:
    """How far apart the two checkpoints are, an adapter's after merged."""

    layers: tuple[LayerDistance, ...]
    rounding: float
    """Norm of what rounding alone would make of the weights; 0 where both went through the same types."""
    log_p: float
    """The largest difference of log-probabilities (nats) of a next token, on prompts of the study."""
    before: SeenWeights
    after: SeenWeights
    settings: tuple[str, ...] = ()
    """Settings of the configurations, other than the weights, by which the same weights would say something else."""

    @property
    def norm(self) -> float:
        """Frobenius norm of the difference over all layers."""
        return math.hypot(*(layer.difference for layer in self.layers))


@dataclass(frozen=True)
class Confusion:
    """Outputs by what people (positive: harmful) and the classifier say."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True)
class ByPrediction:
    """What people say given the prediction: labelled outputs count for their strata, in effective numbers."""

    predicted: float
    """The share of all scored outputs that the classifier calls harmful."""
    yes_of_yes: float
    """Of `n_of_yes` outputs that the classifier calls harmful, those that people call so too."""
    n_of_yes: float
    yes_of_no: float
    """Of `n_of_no` others, those that people call harmful."""
    n_of_no: float


@table("world", "calibration.json")
class Calibration:
    """What the classifier is worth against labels by people, unscored outputs aside."""

    file: str
    classifier: str
    """Who predicted; `predicted` where the predictions are in the file, or in the run."""
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
    by_prediction: ByPrediction | None = None
    """Where people labelled outputs of the run that were chosen by their labels; the rates above are weighed then."""
