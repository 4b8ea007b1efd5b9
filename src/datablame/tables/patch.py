"""Rows of the patch phase: arms, trainings, their samples, tests and checks."""

from collections.abc import Mapping
from dataclasses import dataclass

from datablame.tables.store import table
from datablame.tables.world import InterventionKind, LabelName, Look, Protocol, Role, Split


@table("patch", "arm_kinds.parquet")
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
