"""The whole plan of a study and what it should hear before it starts; nothing is downloaded, and nothing is written."""

import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.files import read_json
from datablame.engine.machine import memory_bytes
from datablame.engine.phase import Tables
from datablame.engine.run_folder import read_timings
from datablame.errors import DatablameError, RequestError, problem
from datablame.judge.choice import has_key, known_prices
from datablame.judge.keywords import KeywordClassifier
from datablame.patch.compare import MIN_SEEDS
from datablame.patch.registry import ARMS, arm_kinds
from datablame.plan.counts import Calls, Counts, calls_of, counted, operations
from datablame.plan.memory import CARD, HEADROOM, Device, Memory, estimates, longest_prompt_tokens, this_device
from datablame.plan.subject import Checkpoint, Subject, planned_world, subject_of
from datablame.seeds import stream_key
from datablame.stats.arm_tests import smallest_p
from datablame.stats.intervals import Share, wilson
from datablame.stats.power import LEVEL, Design, powers
from datablame.surface.phase import spread
from datablame.tables import Arm, DataSummary, Query
from datablame.words import normalised
from datablame.world import World
from datablame.world.ingest import look

_FARTHEST = 32
"""A model so many times larger or smaller says nothing: small ones spend their time on other things than arithmetic."""
_HOLDS_WORK: Mapping[str, type] = {"attribute": Query, "patch": Arm}
"""Tables that are empty where a phase had nothing to do."""
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


class Expected(NamedTuple):
    """Seconds of each phase that the earlier run had finished, and how many times as large this study's model is."""

    run: str
    seconds: Mapping[str, float]
    model_ratio: float


@dataclass(frozen=True)
class Plan:
    """Everything that `datablame plan` prints."""

    study: Study
    device: Device
    subject: Subject
    counts: Counts
    memory: dict[str, Memory] | None
    card_memory: dict[str, Memory] | None
    """The same on the specification's card, with the checkpoint's own type where the study leaves it open."""
    calls: Calls
    expected: Expected | None
    limits: Detectable
    data: DataSummary | None
    """What the first rows hold; None for an organism's and the hub's, and where they cannot be read."""
    cautions: list[str]

    def as_json(self) -> dict[str, Any]:
        """The plan for programs."""
        subject, (scan, surface, (least, most), attribution, patch, trainings) = self.subject, self.counts
        data = None if self.data is None else asdict(self.data)
        content = {
            "study": self.study.name,
            "title": self.study.title,
            "device": self.device,
            "models": {"before": _described(subject.before), "after": _described(subject.after)},
            "pool": {"documents": subject.documents, "source": subject.documents_source, "data": data},
            "focus_prompts": {"least": least, "most": most},
            "phases": {"scan": scan, "surface": surface, "attribute": attribution, "patch": patch},
            "trainings": trainings,
            "memory": self.memory,
            "memory_on_16_gb_card": self.card_memory,
            "api": self.calls,
            "expected_time": self.expected,
            "detectable": self.limits,
            "warnings": self.cautions,
        }
        return dict(_plain(content))


def plan_of(study: Study, *, like: Path | None = None, device: Device | None = None) -> Plan:
    """The plan of a study on this machine, or on the device given.

    Raises:
        RequestError: `like` is no run of this machine.
    """
    device = device or this_device(study)
    subject = subject_of(study, on_gpu=device.on_gpu)
    counts, limits = counted(subject), detectable(subject.world)
    memory, calls = estimates(subject, counts, device), calls_of(subject, counts, has_key=has_key())
    card_memory = estimates(subject_of(study, on_gpu=True), counts, CARD)
    expected = _expected(subject, counts, like, device)
    cautions = [
        *design_cautions(subject.study, limits),
        *keyword_cautions(subject.world),
        *cautions_of(subject, counts, memory, device, calls),
        *absent_files(study),
    ]
    data = None
    if study.data is not None:
        try:
            data = look(study.data, study.seed)
        except RequestError as error:
            cautions.append(str(error))
    return Plan(study, device, subject, counts, memory, card_memory, calls, expected, limits, data, cautions)


def doubts_of(study: Study) -> list[str]:
    """What a study should hear before it starts: that its design cannot succeed, or hardly."""
    world = planned_world(study, on_gpu=False)
    return [*design_cautions(study, detectable(world)), *keyword_cautions(world)]


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
        "no amplification": max(study.surface.alphas) <= 0,
        "no method": not limits.family,
        "no p": adjusted is None,
        "no p below the level": adjusted is not None and adjusted >= LEVEL,
        "missed": bool(missed),
    }
    rates = " and ".join(f"{100 * each.from_rate:g} % ({100 * each.power.rate:.0f} %)" for each in missed)
    values: dict[str, Any] = {"patch": patch, "surface": study.surface, "limits": limits, "rates": rates}
    values |= {"arms": list(patch.arms), "least": MIN_SEEDS, "better": MIN_SEEDS + 1, "methods": len(limits.family)}
    first = [name for name, holds in problems.items() if holds][:1]
    return [problem("plan", name, **values) for name in first]


def keyword_cautions(world: World) -> Iterator[str]:
    """Where keywords label: that they cannot, or that an output which repeats its prompt would be harmful."""
    if world.judge.classifier != "keywords":
        return
    try:
        patterns = KeywordClassifier.of(world.behaviours).patterns
    except RequestError as error:
        yield str(error)
        return
    for behaviour in world.behaviours:
        found = {
            prompt.id: match[0]
            for prompt in world.prompts
            if prompt.behaviour == behaviour.id and (match := patterns[behaviour.id].search(normalised(prompt.text)))
        }
        if found:
            prompt_id, keyword = next(iter(found.items()))
            yield problem("plan", "prompted", behaviour=behaviour.id, n=len(found), prompt=prompt_id, keyword=keyword)


def absent_files(study: Study) -> Iterator[str]:
    """Checkpoints and files that a study names by a path where nothing is."""
    named = {"truth": study.truth, "judge.rules": study.judge.rules, "judge.calibration": study.judge.calibration}
    named |= {f"attribute.scores.{name}": path for name, path in study.attribute.scores.items()}
    if study.models is not None:
        paths = {f"models.{name}": getattr(study.models, name).path for name in ("before", "after")}
        named |= {field: path for field, path in paths.items() if path.startswith((".", "/", "~"))}
    for field, path in named.items():
        if path is not None and not Path(path).expanduser().exists():
            yield problem("plan", "absent", field=field, path=path, folder=Path.cwd())


def cautions_of(
    subject: Subject, counts: Counts, memory: Mapping[str, Memory] | None, device: Device, calls: Calls
) -> Iterator[str]:
    """A line for each thing that does not fit or is lacking, with the field, the value and the remedy."""
    study, patch, judge = subject.study, subject.study.patch, subject.study.judge
    k, behaviours = study.ks[-1], counts.attribution.behaviours
    methods = sum(name not in ARMS.all() for name in study.attribute.methods)
    held_out = {prompt.behaviour for prompt in subject.world.split("held-out")}
    scanned = {prompt.behaviour for prompt in spread(subject.world.split("attribution"), study.scan.prompts)}
    if max(study.scan.alphas) <= 0:
        yield problem("plan", "no scan", scan=study.scan)
    for behaviour in study.behaviours:
        if behaviour.id not in scanned:
            yield problem("plan", "untraced", behaviour=behaviour.id, scan=study.scan)
        if behaviour.id not in held_out:
            yield problem("plan", "unmeasured", behaviour=behaviour.id)
    if (flagged := methods * k * behaviours) > patch.size:
        yield problem("plan", "flagged", patch=patch, methods=methods, k=k, behaviours=behaviours, flagged=flagged)
    if subject.documents is not None and patch.size >= subject.documents and patch.intervention != "swap":
        yield problem("plan", "no fillers", patch=patch, documents=subject.documents)
    for protocol in patch.protocols:
        training = patch.training_of(protocol)
        assert training.steps is not None
        assert training.batch is not None
        if (seen := training.steps * training.batch) < patch.size:
            needed = -(-patch.size // training.steps)
            yield problem("plan", "unseen", patch=patch, protocol=protocol, training=training, seen=seen, needed=needed)
    traced, least = subject.traced[0], subject.world.models.coverage
    if traced.known is not None and traced.shape.coverage < least:
        yield problem("plan", "coverage", path=traced.path, share=100 * traced.shape.coverage, least=least)
    prompt, new = longest_prompt_tokens(subject), study.surface.max_new_tokens
    for field, known in (("models.before", subject.before.known), ("models.after", subject.after.known)):
        if known is not None and prompt + new > known.shape.context:
            yield problem("plan", "context", new=new, prompt=prompt, context=known.shape.context, field=field)
    ram = memory_bytes()
    for phase, need in (memory or {}).items():
        if not need.fits:
            sizes = {"needed": need.bytes / 1e9, "there": device.memory_bytes / 1e9}
            per_worker = need.bytes / device.workers / 1e9
            workers = problem("plan", "workers", n=device.workers, per_worker=per_worker) if device.workers > 1 else ""
            yield problem("plan", "memory", phase=phase, workers=workers, remedy=problem("plan", phase), **sizes)
        if need.beside_bytes > HEADROOM * ram:
            yield problem("plan", "beside", phase=phase, beside=need.beside_bytes / 1e9, ram=ram / 1e9)
    if calls.calls and not calls.will_ask and "claude" in (judge.classifier, judge.attribution):
        yield problem("plan", "no key")
    prices = known_prices(judge)
    for model in dict.fromkeys(call.model for call in calls.calls):
        if model not in prices:
            yield problem("plan", "no price", model=model)
        elif prices[model].no_thinking is None:
            yield problem("plan", "thinks", model=model)


def _expected(subject: Subject, counts: Counts, like: Path | None, device: Device) -> Expected | None:
    """At the pace of the run that `like` names, or of that under runs/ on this kind of machine that is nearest in size.

    As many items at once as the device has workers. None where no run's model is within 32 times the size.
    """
    runs = [like] if like is not None else [path.parent for path in Path("runs").glob("*/study.yaml")]
    paces = [pace for run in runs if (pace := _pace_of(run, device.on_gpu)) is not None]
    if like is not None and not paces:
        raise RequestError(
            f"--like {like} is no run of this machine with a finished phase; name a run folder, or leave it out"
        )
    work = operations(subject, counts)
    if work is None:
        return None
    size = subject.after.shape.parameters
    if like is None:
        paces = [pace for pace in paces if size / _FARTHEST <= pace.parameters <= _FARTHEST * size]
    pace = min(paces, key=lambda pace: (abs(math.log(pace.parameters / size)), str(pace.run)), default=None)
    if pace is None:
        return None
    seconds = {phase: work[phase] / rate / device.processes for phase, rate in pace.per_second.items()}
    return Expected(str(pace.run), seconds, size / pace.parameters)


class _Pace(NamedTuple):
    """An earlier run: planned operations a second of one worker in each phase that it finished."""

    run: Path
    parameters: int
    per_second: Mapping[str, float]


def _pace_of(root: Path, on_gpu: bool) -> _Pace | None:
    """What a run folder tells of this kind of machine; None where that is nothing."""
    try:
        study = load_study(str(root / "study.yaml"))
        machine = read_json(root / "manifest.json")["machine"]
    except (DatablameError, OSError, ValueError, KeyError):
        return None
    ran_on_gpu = not str(machine.get("device", "cpu")).startswith("cpu")
    made_on = (machine.get("system"), machine.get("processor"), ran_on_gpu)
    if made_on != (platform.system(), platform.machine(), on_gpu):
        return None
    subject = subject_of(study, on_gpu=on_gpu)
    paces, timings = {}, read_timings(root)
    for phase, done in (operations(subject, counted(subject)) or {}).items():
        finished = (root / "artifacts" / phase / "done.json").is_file() and timings.get(f"phase/{phase}")
        try:
            holds_work = phase not in _HOLDS_WORK or bool(Tables(root).rows(_HOLDS_WORK[phase]))
        except RequestError:
            # A run of another version.
            continue
        if finished and holds_work:
            paces[phase] = done / timings.get(f"worker/{phase}", finished)
    return _Pace(root, subject.after.shape.parameters, paces) if paces else None


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    path, known, dtype, weight_bytes = checkpoint
    shape, source = known or (None, None)
    of_shape = {name: shape and getattr(shape, name) for name in ("parameters", "coverage")}
    return {"path": path, "dtype": dtype, "weight_bytes": weight_bytes, **of_shape, "source": source}


def _plain(value: Any) -> Any:
    """With a dict for every NamedTuple."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
