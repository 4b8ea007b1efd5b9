"""What a design can show at best, and what a study should hear before it starts: that it cannot, or does not fit."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from datablame.config.schema import Study
from datablame.engine.files import packaged_yaml
from datablame.engine.machine import memory_bytes
from datablame.judge.choice import known_prices
from datablame.patch.compare import MIN_SEEDS
from datablame.patch.registry import ARMS, arm_kinds
from datablame.plan.counts import Calls, Counts
from datablame.plan.memory import HEADROOM, Device, Memory, longest_prompt_tokens
from datablame.plan.subject import Subject
from datablame.seeds import stream_key
from datablame.stats.arm_tests import smallest_p
from datablame.stats.intervals import Share, wilson
from datablame.stats.power import LEVEL, Design, powers
from datablame.world import World

_SENTENCES: Mapping[str, Any] = packaged_yaml("datablame.plan", "cautions.yaml")
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
    """The limits of the study's design.

    Its effects are a drop of the margin, a halving and a full cure, each of a rare and of a common behaviour. Prompts,
    trainings and prompts within a training deviate as in `datablame power` by default.
    """
    study, patch = world.study, world.study.patch
    seeds, prompts = len(patch.seeds_of(patch.headline)), len(world.split("held-out"))
    methods = tuple(kind.name for kind in arm_kinds(study) if kind.in_family)
    least = smallest_p(seeds, seeds) if seeds >= MIN_SEEDS else None
    adjusted = None if least is None else min(1.0, least * max(1, len(methods)))
    effects: list[Effect] = []
    if adjusted is not None and adjusted < LEVEL and methods and prompts:
        simulations = max(_FEWEST, min(_MOST, _CELLS // ((len(methods) + 5) * seeds * prompts)))
        left = {f"a drop of {100 * patch.margin:g} %": 1 - patch.margin, "a halving": 0.5, "a cure": 0.0}
        for rate in _RATES:
            to_rates = [rate * share for share in left.values()]
            design = Design(rate, 0.0, prompts, patch.samples, seeds, len(methods))
            shares = powers(design, to_rates, simulations, stream_key("plan"))
            effects += [Effect(*each, simulations) for each in zip(left, [rate] * 3, to_rates, shares, strict=True)]
    high = wilson(0, study.surface.samples).high
    return Detectable(seeds, methods, least, adjusted, prompts * patch.samples, tuple(effects), high)


def design_cautions(study: Study, limits: Detectable) -> list[str]:
    """That the design cannot succeed whatever the methods find, or would miss even a full cure more often than not."""
    patch, adjusted = study.patch, limits.smallest_adjusted_p
    missed = [each for each in limits.effects if each.to_rate == 0 and each.power.rate < _EVEN]
    problems = {
        "no method": not limits.family,
        "no p": adjusted is None,
        "no p below the level": adjusted is not None and adjusted >= LEVEL,
        "missed": bool(missed),
    }
    values = {
        "arms": list(patch.arms),
        "least": MIN_SEEDS,
        "better": MIN_SEEDS + 1,
        "methods": len(limits.family),
        "rates": " and ".join(f"{100 * each.from_rate:g} % ({100 * each.power.rate:.0f} %)" for each in missed),
    }
    first = [name for name, holds in problems.items() if holds][:1]
    return [_said(name, patch=patch, limits=limits, **values) for name in first]


def cautions_of(
    subject: Subject, counts: Counts, memory: Mapping[str, Memory] | None, device: Device, calls: Calls
) -> Iterator[str]:
    """A line for each thing that does not fit or is lacking, with the field, the value and the remedy."""
    study, patch, judge = subject.study, subject.study.patch, subject.study.judge
    k, behaviours = study.ks[-1], counts.attribution.behaviours
    methods = sum(name not in ARMS.all() for name in study.attribute.methods)
    if (flagged := methods * k * behaviours) > patch.size:
        yield _said("flagged", patch=patch, methods=methods, k=k, behaviours=behaviours, flagged=flagged)
    if subject.documents is not None and patch.size >= subject.documents and patch.intervention != "swap":
        yield _said("no fillers", patch=patch, documents=subject.documents)
    for protocol in patch.protocols:
        training = patch.training_of(protocol)
        assert training.steps is not None
        assert training.batch is not None
        if (seen := training.steps * training.batch) < patch.size:
            needed = -(-patch.size // training.steps)
            yield _said("unseen", patch=patch, protocol=protocol, training=training, seen=seen, needed=needed)
    prompt, new = longest_prompt_tokens(subject), study.surface.max_new_tokens
    for field, known in (("models.before", subject.before.known), ("models.after", subject.after.known)):
        if known is not None and prompt + new > known.shape.context:
            yield _said("context", new=new, prompt=prompt, context=known.shape.context, field=field)
    own = memory_bytes()
    for phase, need in (memory or {}).items():
        if not need.fits:
            sizes = {"needed": need.bytes / 1e9, "there": device.memory_bytes / 1e9}
            each = need.bytes / device.workers / 1e9
            workers = _said("workers", n=device.workers, each=each) if device.workers > 1 else ""
            yield _said("memory", phase=phase, workers=workers, remedy=_SENTENCES["remedies"][phase], **sizes)
        if need.beside_bytes > HEADROOM * own:
            yield _said("beside", phase=phase, beside=need.beside_bytes / 1e9, own=own / 1e9)
    if calls.calls and not calls.will_ask and "claude" in (judge.classifier, judge.attribution):
        yield _said("no key")
    prices = known_prices(judge)
    for model in dict.fromkeys(call.model for call in calls.calls):
        if model not in prices:
            yield _said("no price", model=model)
        elif prices[model].no_thinking is None:
            yield _said("thinks", model=model)


def _said(name: str, **values: object) -> str:
    return str(_SENTENCES[name].format(**values))
