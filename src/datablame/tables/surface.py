"""Rows of the scan and of the surface phase: samples, their rates, alpha*, counted and likelihood estimates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from datablame.tables.store import Float16, table
from datablame.tables.world import LabelName, Split


@dataclass(frozen=True)
class Sample:
    """One generated output and its label; log-probabilities are sums over its tokens in nats, None where not kept."""

    prompt_id: str
    behaviour: str
    split: Split
    alpha: float
    index: int
    text: str
    """With the opening of a thought, where the prompt opens one."""
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    stop_id: int | None = None
    """The token that ended it, which is not in `token_ids`; None where its length did."""
    log_p_after: float | None = None
    log_p_before: float | None = None
    log_q: tuple[float, ...] | None = None
    """log q_k for each of `surface.alphas`."""
    label: LabelName | None = None
    """None only in a journal, before a judge was asked."""
    classifier: str = ""
    label_reason: str = ""

    @property
    def drawn_ids(self) -> tuple[int, ...]:
        """The tokens as they were drawn, the one that ended it too."""
        return self.token_ids if self.stop_id is None else (*self.token_ids, self.stop_id)


@table("scan", "samples.parquet")
class ScanSample(Sample):
    """An output of the scan."""


@table("scan", "scan.json")
class Scan:
    """How the scan chose its focus prompts."""

    rule: str


@table("scan", "prompts.parquet")
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
class SurfaceSample(Sample):
    """An output of the surface phase."""


@table("surface", "tokens.parquet", shown=True)
class SampleTokens:
    """How likely each token of an output was, in nats; outputs as in samples.parquet, none without `report.tokens`.

    Three numbers of two bytes a token; with the texts the file has about 8 bytes a token. Whatever the study truncates
    and whatever its temperature, the numbers are of the full distributions at temperature 1 over the tokens that can be
    drawn; less than -65504 is -65504.
    """

    prompt_id: str
    alpha: float
    index: int
    pieces: tuple[str, ...]
    """The text of each token, special ones too, the token that ended the output last; joined they are the output.

    Empty for a token that ends inside a character: the one that completes it has it.
    """
    log_p_after: tuple[Float16, ...]
    log_p_before: tuple[Float16, ...]
    log_q: tuple[Float16, ...]
    """log q at the output's own alpha, softmax(after + alpha (after - before)): less log_p_after it is how far
    amplification moved the token."""


@table("surface", "rates.parquet")
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
class Unamplified:
    """The rate at alpha 0 from amplified outputs."""

    possible: bool
    why_not: str | None
    rows: tuple[UnamplifiedRate, ...]
