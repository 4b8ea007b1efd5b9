"""How much a study will do: what its own phases would do, the arithmetic behind it, the calls. Upper bounds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from datablame.attribute.evidence.judgements import Judgements
from datablame.attribute.evidence.tournament import Comparisons, most_comparisons
from datablame.attribute.phase import planned_reading
from datablame.attribute.registry import chosen
from datablame.config.schema import Study
from datablame.judge.choice import ATTRIBUTION, CLASSIFICATION, COMPARISON, Usage, cost_usd, decide, known_prices
from datablame.patch.trainings import measured_prompts, specs_of, trainings
from datablame.plan.subject import Subject
from datablame.surface.phase import SampleSpec, scan_specs, spread, surface_specs
from datablame.surface.rates import why_not
from datablame.tables import Protocol

_FORWARD, _BACKWARD = 2, 2
"""Operations for each weight and token: a multiplication and an addition; backward to the inputs takes as many."""


class Sampling(NamedTuple):
    """What one phase samples; at most, for the scan decides how many prompts come into focus."""

    cells: int
    outputs: int
    tokens: int
    """Outputs times the longest output."""
    amplified_tokens: int
    """Those of them for which the before model runs too."""


class Trainings(NamedTuple):
    """The trainings of one protocol; documents are counted as often as they are seen."""

    protocol: Protocol
    arms: int
    """An arm that depends on K counts once for each."""
    seeds: int
    method: str
    documents: int
    """In all trainings together."""
    tokens: int
    """Documents at their longest, both answers of a pair."""
    trainings: int
    """Arms times seeds."""


class Reading(NamedTuple):
    """What the methods read, at most."""

    behaviours: int
    queries: int
    candidates: int
    """For one behaviour: the union of what its queries contribute."""
    gradient_documents: int | None
    """Counted once for each pass forward and back."""
    activation_documents: int | None
    """Counted once for each pass that is forward only."""
    methods: tuple[str, ...]


class Counts(NamedTuple):
    """A study in numbers."""

    scan: Sampling
    surface: Sampling
    focus: tuple[int, int]
    """The least and the most prompts that the scan can bring into focus."""
    attribution: Reading
    patch: Sampling
    """Over all trainings."""
    trainings: tuple[Trainings, ...]


class ModelCalls(NamedTuple):
    """One kind of call; `usd` is None for a model whose price is not known."""

    what: str
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None


class Calls(NamedTuple):
    """What Claude is asked, or would be with a key; `will_ask` says whether the study asks in this shell."""

    will_ask: bool
    why: str
    calls: tuple[ModelCalls, ...] = ()
    usd: float | None = 0.0
    usd_with_a_key: float | None = 0
    """The sum, None where a price is not known."""


def counted(subject: Subject) -> Counts:
    """Every count of a study."""
    world, study = subject.world, subject.study
    scanned = spread(world.split("attribution"), study.scan.prompts)
    focus = most_focus([prompt.behaviour for prompt in scanned], study.scan.focus)
    # Which prompts come into focus is not known; none costs more than another.
    focus_ids = [prompt.id for prompt in scanned[:focus]]
    runs = trainings(study)
    # alpha* is one of the surface alphas; which one is not known yet either.
    alphas = tuple(dict.fromkeys((0.0, max(study.surface.alphas))))
    specs = specs_of(measured_prompts(world, focus_ids), alphas, 0)
    log_probabilities = study.report.tokens or why_not(study.surface) is None
    return Counts(
        scan=_sampling(study, scan_specs(world)),
        surface=_sampling(study, surface_specs(world, focus_ids), both=log_probabilities),
        focus=(min(study.scan.focus, len(scanned)), focus),
        attribution=_reading(subject, min(len({prompt.behaviour for prompt in scanned}), focus)),
        patch=Sampling(*(len(runs) * number for number in _sampling(study, specs))),
        trainings=tuple(_trainings(subject, protocol) for protocol in study.patch.protocols),
    )


def most_focus(behaviours: Sequence[str], focus: int) -> int:
    """The most prompts that come into focus: the first `focus`, and one of every behaviour that is not among them."""
    sizes = sorted(Counter(behaviours).values(), reverse=True)
    first = min(focus, len(behaviours))
    covered = sum(taken < first for taken in accumulate(sizes, initial=0))
    return first + len(sizes) - covered


def operations(subject: Subject, counts: Counts) -> dict[str, float] | None:
    """Operations of each phase, to compare studies with; None where a checkpoint's shape is not known.

    Counted are products with weights, at most for every token: 2 for each weight and token forward, 2 backward to the
    inputs of the blocks passed, 2 for each weight whose gradient is formed. Attention's own products are left out.
    """
    if not subject.is_sized:
        return None
    before, after, shape = subject.before.shape, subject.after.shape, subject.traced[0].shape

    def sampling(phase: Sampling) -> float:
        return _FORWARD * (after.passed_parameters * phase.tokens + before.passed_parameters * phase.amplified_tokens)

    passed = shape.passed_block_weights * (shape.layers - min(subject.blocks, default=shape.layers))
    compared = shape.passed_block_weights * len(subject.blocks)
    a_gradient = _FORWARD * (shape.passed_parameters + compared) + _BACKWARD * (
        passed + shape.vocabulary * shape.hidden
    )
    reading = (counts.attribution.gradient_documents or 0) * a_gradient
    reading += (counts.attribution.activation_documents or 0) * _FORWARD * shape.passed_parameters
    training = 0.0
    for row in counts.trainings:
        weights = (before if row.protocol == "retrain" else after).passed_parameters
        training += row.tokens * weights * (_FORWARD + _BACKWARD + (2 if row.method == "full" else 0))
    return {
        "scan": sampling(counts.scan),
        "surface": sampling(counts.surface),
        "attribute": float(subject.document_tokens * reading),
        "patch": training + sampling(counts.patch),
    }


def calls_of(subject: Subject, counts: Counts, *, has_key: bool) -> Calls:
    """At most so many calls: an output or document that was asked about before comes from the cache."""
    study, judge = subject.study, subject.study.judge
    # What a key would make of it is of interest without one too.
    choice = decide(study, None, True)
    labels = choice.classifier == "claude"
    needs = {kind for method in chosen(study.attribute) for kind in method.needs}
    scores, compares = (choice.attribution == "claude" and kind in needs for kind in (Judgements, Comparisons))
    if not labels and not scores and not compares:
        return Calls(False, f"no calls; {choice.classifier} label the outputs")
    outputs = counts.scan.outputs + counts.surface.outputs + counts.patch.outputs
    behaviours, candidates = counts.attribution.behaviours, counts.attribution.candidates
    pairs = behaviours * most_comparisons(candidates, judge.rounds)
    prices, calls = known_prices(judge), []
    for wanted, what, model, n, per_call in (
        (labels, "outputs labelled", judge.model, outputs, CLASSIFICATION),
        (scores, "documents scored", judge.attribution_model, behaviours * candidates * judge.repeats, ATTRIBUTION),
        (compares, "documents compared", judge.attribution_model, pairs, COMPARISON),
    ):
        if wanted:
            usage = Usage(n * per_call.input_tokens, n * per_call.output_tokens)
            usd = cost_usd(model, usage, prices, batch=judge.batches) if model in prices else None
            calls.append(ModelCalls(what, model, n, usage.input_tokens, usage.output_tokens, usd))
    if has_key:
        why = "ANTHROPIC_API_KEY is set; at most"
    elif "claude" in (judge.classifier, judge.attribution):
        why = "the study asks for Claude, but ANTHROPIC_API_KEY is not set; at most"
    else:
        why = "no calls, for ANTHROPIC_API_KEY is not set: keywords label and judge; with a key at most"
    known = [call.usd for call in calls if call.usd is not None]
    total = sum(known) if len(known) == len(calls) else None
    return Calls(has_key, why, tuple(calls), total if has_key else 0.0, total)


def _sampling(study: Study, specs: Iterable[SampleSpec], *, both: bool = False) -> Sampling:
    """`both` where log-probabilities make the before model run at alpha 0 too."""
    cells: Counter[tuple[str, float]] = Counter((spec.prompt.id, spec.alpha) for spec in specs)
    outputs, longest = cells.total(), study.surface.max_new_tokens
    amplified = sum(n for (_, alpha), n in cells.items() if alpha != 0 or both)
    return Sampling(len(cells), outputs, outputs * longest, amplified * longest)


def _trainings(subject: Subject, protocol: Protocol) -> Trainings:
    training = subject.study.patch.training_of(protocol)
    keys = [key for key in trainings(subject.study) if key.protocol == protocol]
    assert training.steps is not None
    assert training.batch is not None
    documents, arms = len(keys) * training.steps * training.batch, len({(key.arm, key.k) for key in keys})
    seeds, tokens = len(keys) // max(1, arms), documents * subject.document_tokens
    return Trainings(protocol, arms, seeds, training.method, documents, tokens, arms * seeds)


def _reading(subject: Subject, behaviours: int) -> Reading:
    settings, pool = subject.study.attribute, subject.documents
    candidates = settings.queries * subject.study.prefilter.candidates
    read = planned_reading(subject.world, chosen(settings), pool, behaviours).values()

    def passed(numbers: Iterable[tuple[int | None, int]]) -> int | None:
        counts = [None if documents is None else documents * passes for documents, passes in numbers if passes]
        return None if None in counts else sum(n for n in counts if n is not None)

    return Reading(
        behaviours,
        queries=behaviours * settings.queries,
        candidates=candidates if pool is None else min(pool, candidates),
        gradient_documents=passed((each.documents, each.passes.backward) for each in read),
        activation_documents=passed((each.documents, each.passes.forward) for each in read),
        methods=settings.methods,
    )
