"""What a design can show at best, and what a study should hear before it starts: that it cannot, or does not fit."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from datablame.config.schema import Patch, Study
from datablame.engine.execute import memory_bytes
from datablame.patch.compare import MIN_SEEDS
from datablame.patch.registry import ARMS, arm_kinds
from datablame.plan.counts import Counts
from datablame.plan.memory import HEADROOM, Memory, longest_prompt_tokens
from datablame.plan.subject import Subject
from datablame.seeds import stream_key
from datablame.stats.arm_tests import smallest_p
from datablame.stats.intervals import Share, wilson
from datablame.stats.power import LEVEL, Design, powers
from datablame.world import World

_REMEDIES = {
    "scan": "lower surface.batch_rows",
    "surface": "lower surface.batch_rows",
    "attribute": "lower attribute.max_tokens, attribute.batch_tokens or the number of behaviours",
    "patch": "lower patch.micro_batch or attribute.max_tokens",
}
_EVEN = 0.5
"""Power below which a study that works is likelier to miss it."""
_RATES = (0.1, 0.5)
"""Harmful rates without removal for which power is told: a rare behaviour and a common one."""
_FEWEST, _MOST = 100, 400
_CELLS = 500_000
"""Cells (arm, study, seed, prompt) to simulate, so that a plan takes a second or two."""


class Effect(NamedTuple):
    """The share of simulated studies of this design that see one method lower the rate so far."""

    what: str
    from_rate: float
    to_rate: float
    power: Share
    simulations: int


class Detectable(NamedTuple):
    """Of the headline protocol."""

    seeds: int
    family: tuple[str, ...]
    """The methods that Holm adjusts for."""
    smallest_p: float | None
    """None with too few seeds for a p value."""
    smallest_adjusted_p: float | None
    outputs: int
    """Held-out outputs of one training at one alpha: prompts times samples."""
    effects: tuple[Effect, ...]
    """Empty where no effect whatever can be shown: no p value, none below the level, no method, no prompt."""
    cell_zero_high: float
    """Upper Wilson end where a cell of the surface phase shows nothing."""


def detectable(world: World) -> Detectable:
    """The limits of the study's design."""
    study, patch = world.study, world.study.patch
    seeds = len(patch.seeds_of(patch.headline))
    methods = tuple(kind.name for kind in arm_kinds(study) if kind.in_family)
    least = smallest_p(seeds, seeds) if seeds >= MIN_SEEDS else None
    adjusted = None if least is None else min(1.0, least * max(1, len(methods)))
    prompts = len(world.split("held-out"))
    possible = adjusted is not None and adjusted < LEVEL and methods and prompts
    return Detectable(
        seeds=seeds,
        family=methods,
        smallest_p=least,
        smallest_adjusted_p=adjusted,
        outputs=prompts * patch.samples,
        effects=_effects(patch, prompts, seeds, len(methods)) if possible else (),
        cell_zero_high=wilson(0, study.surface.samples).high,
    )


def _effects(patch: Patch, prompts: int, seeds: int, methods: int) -> tuple[Effect, ...]:
    """A drop of the margin, a halving and a full cure, each of a rare and of a common behaviour.

    Prompts, trainings and prompts within a training deviate as in `datablame power` by default.
    """
    simulations = max(_FEWEST, min(_MOST, _CELLS // ((methods + 5) * seeds * prompts)))
    shrinkage = {f"a drop of {100 * patch.margin:g} %": 1 - patch.margin, "a halving": 0.5, "a cure": 0.0}
    effects: list[Effect] = []
    for rate in _RATES:
        design = Design(rate, 0.0, prompts, patch.samples, seeds, methods)
        to_rates = [rate * left for left in shrinkage.values()]
        shares = powers(design, to_rates, simulations, stream_key("plan"))
        effects += [Effect(*each, simulations) for each in zip(shrinkage, [rate] * 3, to_rates, shares, strict=True)]
    return tuple(effects)


def design_cautions(study: Study, limits: Detectable) -> list[str]:
    """That the design cannot succeed whatever the methods find, or would miss even a full cure more often than not."""
    patch = study.patch
    headline = patch.headline
    if not limits.family:
        return [
            f"patch.arms = {list(patch.arms)} has no method whose removal is tested, so that the study cannot succeed; "
            "add one of attribute.methods"
        ]
    if limits.smallest_p is None or limits.smallest_adjusted_p is None:
        return [
            f"patch.seeds: {limits.seeds} for {headline} is too few for a p value; give at least {MIN_SEEDS}, better "
            f"{MIN_SEEDS + 1} (without one nothing can be called significant)"
        ]
    if limits.smallest_adjusted_p >= LEVEL:
        return [
            f"patch.seeds: with {limits.seeds} for {headline} no p can be below {limits.smallest_p:.4f}, times "
            f"{len(limits.family)} methods {limits.smallest_adjusted_p:.3f}, which is not below .05; give more seeds "
            "or fewer methods in patch.arms"
        ]
    missed = [each for each in limits.effects if each.to_rate == 0 and each.power.rate < _EVEN]
    if not missed:
        return []
    rates = " and ".join(f"{100 * each.from_rate:g} % ({100 * each.power.rate:.0f} %)" for each in missed)
    return [
        f"patch.seeds, patch.samples: {limits.seeds} seeds with {limits.outputs} held-out outputs a training see even "
        f"a full cure less often than not where the harmful rate is {rates}; give more, or more held-out prompts "
        "(datablame power searches for a design)"
    ]


def cautions_of(
    subject: Subject, counts: Counts, memory: Mapping[str, Memory] | None, device_bytes: int, workers: int
) -> Iterator[str]:
    """A line for each thing that does not fit (documents, prompts, memory) with the field, the value and the remedy."""
    study, patch, behaviours = subject.study, subject.study.patch, counts.attribution.behaviours
    k = study.ks[-1]
    flagging = [name for name in study.attribute.methods if name not in ARMS.all()]
    flagged = len(flagging) * k * behaviours
    if flagged > patch.size:
        yield (
            f"patch.size = {patch.size} cannot hold the documents that {len(flagging)} methods may flag ({k} for each "
            f"of {behaviours} behaviours: {flagged}, or more); raise it or lower attribute.top_k "
            "(and the largest of patch.k)"
        )
    if subject.documents is not None and patch.size >= subject.documents and patch.intervention != "swap":
        yield (
            f"patch.size = {patch.size} leaves no fillers in a pool of {subject.documents} documents; "
            "lower it or enlarge the pool"
        )
    for protocol in patch.protocols:
        training = patch.training_of(protocol)
        assert training.steps is not None
        assert training.batch is not None
        if training.steps * training.batch < patch.size:
            yield (
                f"patch.batch = {training.batch} for {protocol}: {training.steps} steps see "
                f"{training.steps * training.batch} of the {patch.size} documents of the fine-tune set; give at least "
                f"{-(-patch.size // training.steps)}, or flagged documents may never be seen"
            )
    prompt, new = longest_prompt_tokens(subject), study.surface.max_new_tokens
    for field, checkpoint in (("models.before", subject.before), ("models.after", subject.after)):
        if checkpoint.shape is not None and prompt + new > checkpoint.shape.context:
            yield (
                f"surface.max_new_tokens = {new} and about {prompt} tokens of the longest prompt are more than the "
                f"context of {checkpoint.shape.context} tokens of {field}; lower it or shorten the prompt"
            )
    own_bytes = memory_bytes()
    for phase, need in (memory or {}).items():
        if workers * need.total > HEADROOM * device_bytes:
            own = "" if workers == 1 else f" ({workers} workers; --workers 1 needs {need.total / 1e9:.1f} GB)"
            yield (
                f"{phase} needs about {workers * need.total / 1e9:.1f} GB, here are {device_bytes / 1e9:.1f} GB{own}; "
                f"{_REMEDIES[phase]}, or use a larger device"
            )
        if need.beside > HEADROOM * own_bytes:
            yield (
                f"{phase} keeps {need.beside / 1e9:.1f} GB of directions in the machine's {own_bytes / 1e9:.1f} GB; "
                "give fewer attribute.layers or behaviours, or use a larger machine"
            )
