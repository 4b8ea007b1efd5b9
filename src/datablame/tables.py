"""Every row that crosses a border between phases, declared once: its type, its file, how it is written and read.

A row is a frozen dataclass; `@table(phase, file)` says where its rows lie, below `artifacts/PHASE`. Tables of many rows
are Parquet, a table of one row is JSON. Equal rows give equal bytes.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import pyarrow as pa

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

T = TypeVar("T")


class Place(NamedTuple):
    """Where a table lies: the phase that writes it and its file below `artifacts/PHASE`."""

    phase: str
    file: str

    @property
    def single(self) -> bool:
        """Whether the table has one row, which is a JSON object."""
        return self.file.endswith(".json")


TABLES: dict[type, Place] = {}
"""Every table with its place, in the order of the phases."""


def table(phase: str, file: str) -> Callable[[type[T]], type[T]]:
    """Declare where the rows of a dataclass lie."""

    def declare(row: type[T]) -> type[T]:
        TABLES[row] = Place(phase, file)
        return row

    return declare


# Rows that several tables have inside.


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


_OTHER_COLOURS = (
    ("#9A86C8", "#6F57A8"),
    ("#4DAF4A", "#2F7F2D"),
    ("#F29E7E", "#B4623F"),
    ("#C9B400", "#7D7000"),
    ("#5FC7D9", "#1F7F91"),
)
_OTHER_MARKERS = ("h", "d", "8", "p", "H")


def look_of(name: str) -> Look:
    """A fill, an ink and a marker by the checksum of a name that brings no look of its own."""
    checksum = zlib.crc32(name.encode()) % (len(_OTHER_COLOURS) * len(_OTHER_MARKERS))
    marker, colours = divmod(checksum, len(_OTHER_COLOURS))
    return Look(*_OTHER_COLOURS[colours], _OTHER_MARKERS[marker])


@dataclass(frozen=True)
class Label:
    """What a classifier says of one output; `reason` is the rule that decided, or why it is unscored."""

    label: LabelName
    classifier: str
    reason: str


# world


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


# scan and surface


@dataclass(frozen=True)
class Sample:
    """One generated output and its label; log-probabilities are sums over its tokens in nats, None where not kept."""

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
    """log q_k for each of `surface.alphas`."""
    label: LabelName | None = None
    """None only in a journal, before a judge was asked."""
    classifier: str = ""
    label_reason: str = ""


@table("scan", "samples.parquet")
@dataclass(frozen=True)
class ScanSample(Sample):
    """An output of the scan."""


@table("scan", "scan.json")
@dataclass(frozen=True)
class Scan:
    """How the scan chose its focus prompts."""

    rule: str


@table("scan", "prompts.parquet")
@dataclass(frozen=True)
class ScannedPrompt:
    """A prompt that was scanned: its harmful rate at each alpha (None: nothing scored), and whether it is in focus."""

    prompt_id: str
    behaviour: str
    alphas: tuple[float, ...]
    rates: tuple[float | None, ...]
    rise: float
    selected: bool
    reason: str


@table("surface", "samples.parquet")
@dataclass(frozen=True)
class SurfaceSample(Sample):
    """An output of the surface phase."""


@table("surface", "rates.parquet")
@dataclass(frozen=True)
class Rate:
    """The labels of one cell counted, the harmful rate among the scored and its Wilson 95 % interval."""

    prompt_id: str
    behaviour: str
    split: Split
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


LEAST_RISE = 0.02
"""A rise whose interval ends below this is none that a study of this kind could explain."""


@dataclass(frozen=True)
class Rise:
    """rate(alpha*) - rate(0) of the after model over held-out prompts, with a 95 % bootstrap interval over them."""

    alpha: float
    plain: float
    amplified: float
    difference: float
    low: float
    high: float
    prompts: int
    deviation: float
    """Standard deviation of the prompts' differences."""
    small: bool
    """Whether the interval ends below `LEAST_RISE`."""
    absent: bool
    """Whether the interval holds no rise and is small: there is no behaviour to find a cause for."""


@table("surface", "alpha_star.json")
@dataclass(frozen=True)
class AlphaStar:
    """The amplification at which arms are compared."""

    alpha_star: float | None
    """None: no alpha above 0 is coherent often enough."""
    rule: str
    coherence: Mapping[str, float]
    """The coherent share at each alpha, written as `{alpha:g}`."""
    rise: Rise | None
    """None without alpha*, or where fewer than two held-out prompts were scored at both amplifications."""


@dataclass(frozen=True)
class Counted:
    """The rate at alpha 0 as it was counted there."""

    rate: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Importance:
    """The rate at alpha 0 weighed from outputs of all alphas; a withheld estimate has a reason and no figure."""

    rate: float | None
    low: float | None
    high: float | None
    n: int
    harmful: int
    ess: float | None
    largest_weight_share: float | None
    harmful_ess: float | None
    khat: float | None
    withheld: str | None


@dataclass(frozen=True)
class UnamplifiedRate:
    """The rate at alpha 0 of one behaviour and split: counted, and estimated."""

    behaviour: str
    split: Split
    naive: Counted
    importance: Importance


@table("surface", "unamplified.json")
@dataclass(frozen=True)
class Unamplified:
    """The rate at alpha 0 from amplified outputs."""

    possible: bool
    why_not: str | None
    rows: tuple[UnamplifiedRate, ...]


# attribute


@table("attribute", "queries.parquet")
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
    harmful: bool = True


@table("attribute", "candidates.parquet")
@dataclass(frozen=True)
class Candidate:
    """A document that BM25 finds near a behaviour's queries."""

    behaviour: str
    doc_id: str


@table("attribute", "scores.parquet")
@dataclass(frozen=True)
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
@dataclass(frozen=True)
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


@table("attribute", "methods.parquet")
@dataclass(frozen=True)
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


@table("attribute", "agreement.parquet")
@dataclass(frozen=True)
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
@dataclass(frozen=True)
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
@dataclass(frozen=True)
class PrefilterRecall:
    """The share of planted clusters with a member among the candidates."""

    behaviour: str
    recall: float | None


@table("attribute", "ceilings.parquet")
@dataclass(frozen=True)
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
@dataclass(frozen=True)
class Theme:
    """A KMeans cluster of the candidates' activations."""

    terms: tuple[str, ...]
    count: int
    share: float
    examples: tuple[str, ...]
    flagged: tuple[ThemeShare, ...]


@table("attribute", "top_documents.parquet")
@dataclass(frozen=True)
class ShownDocument:
    """The text of a flagged document or of a theme's example."""

    doc_id: str
    prompt: str
    response: str
    rejected: str
    source: str
    planted: bool | None
    """None where nobody knows."""


@dataclass(frozen=True)
class Match:
    """A document that repeats a prompt of the study, or a traced output with its prompt."""

    doc_id: str
    of: str


@dataclass(frozen=True)
class JudgeAnswers:
    """What a model was asked about documents and left without a score, by reason."""

    model: str
    asked: int
    missing: Mapping[str, int]


@table("attribute", "attribution.json")
@dataclass(frozen=True)
class Attribution:
    """What attribution looked for and among what."""

    k: int
    traced: tuple[str, ...]
    dropped: tuple[str, ...]
    """Behaviours without a harmful output; all of them where there is no rise."""
    no_rise: bool
    prefilter: Literal["bm25", "none"]
    candidates: Mapping[str, int]
    truth: bool
    """Whether planted documents are known."""
    prompt_matches: tuple[Match, ...]
    query_matches: tuple[Match, ...]
    themed: int
    """Candidates that themes were made of."""
    silhouette: float | None
    exactness: Mapping[str, Any] | None = None
    """How a sample of the documents ranks beside float32 without projection, where something else was done."""
    judge: JudgeAnswers | None = None
    """None where no model was asked."""


# patch


@table("patch", "arm_kinds.parquet")
@dataclass(frozen=True)
class ArmInfo:
    """An arm of the study, in its order."""

    name: str
    label: str
    role: Role
    depends_on_k: bool
    in_family: bool
    """Whether Holm adjusts for it."""
    target: str
    """What it acts on, in words: `what gradient flagged`."""
    look: Look
    needs_truth: bool = False
    """Whether it acts on what is known to be to blame: the most that removal could do."""


@table("patch", "arms.parquet")
@dataclass(frozen=True)
class Arm:
    """One data intervention under one protocol, trained with one seed; `fillers` stand where `removed` stood.

    Under `swap` what was removed is the order of a pair's answers: the pairs stand there exchanged, without fillers.
    """

    arm: str
    protocol: Protocol
    k: int
    """0 for an arm that is the same at every K."""
    seed: int
    intervention: InterventionKind
    removed: tuple[str, ...]
    fillers: tuple[str, ...]
    loosely_matched: int
    """Fillers of another source or length band."""


@table("patch", "training.parquet")
@dataclass(frozen=True)
class Training:
    """How one training went."""

    arm: str
    protocol: Protocol
    k: int
    seed: int
    steps: int
    losses: tuple[float, ...]
    """Every tenth, in nats (or DPO's)."""
    final_loss: float
    weight_change_norm: float
    modules: int
    matched_modules: tuple[str, ...]


@table("patch", "exposure.parquet")
@dataclass(frozen=True)
class Exposure:
    """Of what a training removed: the share that the no-removal arm really saw, and how many it still saw itself."""

    arm: str
    protocol: Protocol
    k: int
    seed: int
    removed: int
    seen_in_baseline: float
    seen_in_arm: int
    seen_swapped: int | None
    """Pairs seen with exchanged answers; None but under `swap`."""


@table("patch", "samples.parquet")
@dataclass(frozen=True)
class ArmSample:
    """One output of an arm."""

    arm: str
    protocol: str
    """`none` for the after model itself."""
    k: int
    seed: int
    prompt_id: str
    behaviour: str
    split: Split
    alpha: float
    index: int
    text: str
    label: LabelName


@table("patch", "comparison.parquet")
@dataclass(frozen=True)
class ArmRate:
    """One cell of an arm: a row of patching_comparison.csv."""

    arm: str
    protocol: str
    k: int
    seed: int
    behaviour: str
    prompt_id: str
    split: Split
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


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t tests: whether the difference lies within the margin."""

    level: float
    low: float
    high: float
    margin: float
    p: float
    equivalent: bool


@dataclass(frozen=True)
class Difference:
    """An arm's mean rate less a reference's, over the prompts that every arm and seed scored."""

    difference: float
    low: float
    high: float
    relative: float | None
    p: float | None
    smallest_p: float | None
    why_no_p: str | None
    t: float | None
    t_p: float | None
    t_low: float | None
    t_high: float | None
    equivalence: Equivalence | None


@dataclass(frozen=True)
class LabelCounts:
    """Labels of an arm over all seeds and prompts."""

    harmful: int
    refused: int
    harmless: int
    incoherent: int
    unscored: int

    @property
    def n(self) -> int:
        """All outputs."""
        return self.harmful + self.refused + self.harmless + self.incoherent + self.unscored


@table("patch", "tests.parquet")
@dataclass(frozen=True)
class ArmTest:
    """An arm in one comparison: its rate, and how far it is from random removal and from no removal."""

    arm: str
    protocol: str
    alpha: float
    split: Split
    behaviour: str
    k: int
    headline: bool
    """Whether the row decides."""
    seeds: int
    prompts: int
    per_seed: tuple[float, ...]
    rate: float | None
    low: float | None
    high: float | None
    to_random: Difference | None
    to_baseline: Difference | None
    p: float | None
    p_holm: float | None
    family: int | None
    """Arms that Holm adjusted for."""
    counts: LabelCounts
    rate_of_coherent: float | None


@table("patch", "checks.parquet")
@dataclass(frozen=True)
class Check:
    """The side checks of one training."""

    arm: str
    protocol: str
    k: int
    seed: int
    perplexity: float | None
    clean_tokens: int
    kl: float | None
    """KL(arm || before) in nats a token on the arm's own outputs."""
    kl_tokens: int
    weight_change_norm: float | None
    refused_harmless: int
    harmless_outputs: int
    coherent: float | None


@table("patch", "arm_checks.parquet")
@dataclass(frozen=True)
class ArmCheck:
    """What an arm costs against its protocol's baseline, over its seeds."""

    arm: str
    protocol: str
    k: int
    seeds: int
    perplexity: float | None
    refusal: float | None
    coherent: float | None
    kl: float | None
    weight_change_norm: float | None
    perplexity_change: float | None
    refusal_change: float | None
    holds: bool
    why: tuple[str, ...]


@dataclass(frozen=True)
class Again:
    """The baseline trained again on other seeds against itself, where the verdict comes from."""

    protocol: str
    seeds: int
    rate: float | None
    again: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    smallest_p: float | None
    why_no_p: str | None


@dataclass(frozen=True)
class CheckDesign:
    """How side checks were made."""

    perplexity: float
    """How much of its perplexity an arm may lose against the baseline, a share."""
    refusal: float
    """How many more harmless prompts it may refuse, a share."""
    coherence: float
    """The share of its outputs that has to be coherent."""
    clean_wanted: int
    clean_ids: tuple[str, ...]
    harmless_prompts: int
    refusals_by: str
    absent: Mapping[str, str | None]
    """Why the check `perplexity` or `refusal` could not be made."""


@table("patch", "patching.json")
@dataclass(frozen=True)
class Patching:
    """What the arms have in common."""

    alpha: float | None
    """Where arms are compared; None where none was trained."""
    alpha_star_found: bool
    """Whether it is alpha*, or the least amplification stands in for it."""
    k: int | None
    """The K that decides."""
    ks: tuple[int, ...]
    skipped_arms: tuple[str, ...]
    again: Again | None
    exposed: bool
    """Whether the exposure gate passed."""
    least_seen_in_baseline: float
    unscored: Mapping[str, int]
    """Why outputs of arms have no label."""
    checks: CheckDesign


# Reading and writing


def path_of(row: type, root: Path) -> Path:
    """Where a table lies in a run folder."""
    place = TABLES[row]
    return root / "artifacts" / place.phase / place.file


def rows_of(path: Path, row: type[T], columns: Sequence[str] | None = None, **where: Any) -> list[T]:
    """The rows of a Parquet file; none where there is no file.

    `where` names columns and the value that a row must have there, or a set of which it must have one.
    """
    import pyarrow.parquet as pq

    if not path.exists():
        return []
    kind: Any = row
    filters = [(name, "in" if isinstance(value, set) else "=", value) for name, value in where.items()] or None
    found = pq.read_table(path, columns=columns, filters=filters).to_pylist()
    rows: list[T] = [row(**each) for each in found] if _flat(kind) else _adapter(kind).validate_python(found)
    return rows


def object_of(path: Path, row: type[T]) -> T | None:
    """The one row of a JSON file; None where there is no file."""
    kind: Any = row
    found: list[T] = _adapter(kind).validate_json(b"[" + path.read_bytes() + b"]") if path.exists() else []
    return found[0] if found else None


def encoded(row: type[T], rows: "Sequence[T] | T | pa.Table") -> bytes:
    """The bytes of a table: Parquet of rows or of an Arrow table, which is written as it is, or one JSON object."""
    import io
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    kind: Any = row
    if isinstance(rows, row):
        plain = _adapter(kind).dump_python([rows], mode="json")[0]
        return (json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    columns: Any = rows
    if not isinstance(rows, pa.Table):
        plain = _adapter(kind).dump_python(list(columns))
        schema = schema_of(kind)
        columns = pa.table({name: [each[name] for each in plain] for name in schema.names}, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(columns, buffer, compression="zstd")
    return buffer.getvalue()


@functools.cache
def schema_of(row: Any) -> "pa.Schema":
    """The Arrow schema of a row, from its types."""
    import pyarrow as pa

    hints = get_type_hints(row)
    return pa.schema([pa.field(each.name, _arrow(hints[each.name])) for each in fields(row)])


def _arrow(hint: Any) -> "pa.DataType":
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return pa.struct([pa.field(each.name, _arrow(hints[each.name])) for each in fields(hint)])
    arguments = [each for each in get_args(hint) if each not in (type(None), ...)]
    if get_origin(hint) is Literal:
        return plain[type(arguments[0])]
    return pa.list_(_arrow(arguments[0])) if get_origin(hint) is tuple else _arrow(arguments[0])


@functools.cache
def _flat(row: Any) -> bool:
    """Whether rows can be made of what Arrow gives out without conversion: no lists and no rows inside."""
    import pyarrow as pa

    return not any(pa.types.is_nested(each.type) for each in schema_of(row))


@functools.cache
def _adapter(row: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(list[row])
