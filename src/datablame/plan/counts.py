"""How much a study will do: what its own phases would do, the arithmetic behind it, the calls. Upper bounds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from datablame.attribute.methods.gradients import Gradients
from datablame.attribute.methods.llm_judge import Judgements
from datablame.attribute.phase import planned_documents
from datablame.attribute.registry import chosen
from datablame.config.schema import Study
from datablame.judge.choice import ATTRIBUTION, CLASSIFICATION, Usage, cost_usd, decide, known_prices
from datablame.patch.trainings import measured_prompts, specs_of, trainings
from datablame.plan.subject import Shape, Subject
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

    @property
    def trainings(self) -> int:
        """Arms times seeds."""
        return self.arms * self.seeds


class Reading(NamedTuple):
    """What the methods read, at most."""

    behaviours: int
    queries: int
    candidates: int
    """For one behaviour: the union of what its queries contribute."""
    gradient_documents: int | None
    activation_documents: int | None
    """Counted twice where they are read at both checkpoints."""
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


class Asked(NamedTuple):
    """One kind of call; `usd` is None for a model whose price is not known."""

    what: str
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None


class Calls(NamedTuple):
    """What Claude is asked, or would be with a key; `will_ask` says whether the study asks in this shell."""

    asked: tuple[Asked, ...]
    will_ask: bool
    why: str
    cautions: tuple[str, ...] = ()

    @property
    def usd(self) -> float | None:
        """The sum, None where a price is not known."""
        prices = [each.usd for each in self.asked]
        return None if None in prices else sum(price for price in prices if price is not None)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "will_ask": self.will_ask,
            "why": self.why,
            "calls": [each._asdict() for each in self.asked],
            "usd": self.usd if self.will_ask else 0.0,
            "usd_with_a_key": self.usd,
        }


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
    asked = specs_of(measured_prompts(world, focus_ids), alphas, 0)
    return Counts(
        scan=_sampling(study, scan_specs(world)),
        surface=_sampling(study, surface_specs(world, focus_ids), both=why_not(study.surface) is None),
        focus=(min(study.scan.focus, len(scanned)), focus),
        attribution=_reading(subject, min(len({prompt.behaviour for prompt in scanned}), focus)),
        patch=Sampling(*(len(runs) * number for number in _sampling(study, asked))),
        trainings=tuple(_trainings(subject, protocol) for protocol in study.patch.protocols),
    )


def most_focus(behaviours: Sequence[str], focus: int) -> int:
    """The most prompts that come into focus: the first `focus`, and one of every behaviour that is not among them."""
    sizes = sorted(Counter(behaviours).values(), reverse=True)
    covered, left = 0, min(focus, len(behaviours))
    while left > 0:
        left -= sizes[covered]
        covered += 1
    return min(focus, len(behaviours)) + len(sizes) - covered


def blocks_of(study: Study, shape: Shape) -> tuple[int, ...]:
    """The decoder blocks whose gradients are compared."""
    layers = study.attribute.layers
    return shape.blocks if layers is None else tuple(sorted(set(layers)))


def operations(subject: Subject, counts: Counts) -> dict[str, float] | None:
    """Operations of each phase, to compare studies with; None where a checkpoint's shape is not known.

    Counted are products with weights, at most for every token: 2 for each weight and token forward, 2 backward to the
    inputs of the blocks passed, 2 for each weight whose gradient is formed. Attention's own products are left out.
    """
    before, after, study = subject.before.shape, subject.after.shape, subject.study
    if before is None or after is None:
        return None
    shape = after if study.attribute.checkpoint == "after" else before

    def sampling(phase: Sampling) -> float:
        return _FORWARD * (after.parameters * phase.tokens + before.parameters * phase.amplified_tokens)

    longest = subject.answers * study.attribute.max_tokens
    blocks = blocks_of(study, shape)
    passed = shape.block_linear_weights * (shape.layers - min(blocks, default=shape.layers))
    compared = shape.block_linear_weights * len(blocks)
    a_gradient = _FORWARD * (shape.parameters + compared) + _BACKWARD * (passed + shape.vocabulary * shape.hidden)
    reading = (counts.attribution.gradient_documents or 0) * a_gradient
    reading += (counts.attribution.activation_documents or 0) * _FORWARD * shape.parameters
    training = 0.0
    for protocol in counts.trainings:
        trained = before if protocol.protocol == "retrain" else after
        own = 2 * trained.parameters if protocol.method == "full" else 0
        training += protocol.tokens * ((_FORWARD + _BACKWARD) * trained.parameters + own)
    return {
        "scan": sampling(counts.scan),
        "surface": sampling(counts.surface),
        "attribute": float(longest * reading),
        "patch": training + sampling(counts.patch),
    }


def calls_of(subject: Subject, counts: Counts, *, has_key: bool) -> Calls:
    """At most so many calls: an output or document that was asked about before comes from the cache."""
    study, judge = subject.study, subject.study.judge
    # What a key would make of it is of interest without one too.
    choice = decide(study, None, True)
    labels = choice.classifier == "claude"
    judges = choice.attribution == "claude" and any(Judgements in method.needs for method in chosen(study.attribute))
    if not labels and not judges:
        return Calls((), False, f"no calls; {choice.classifier} label the outputs")
    outputs = counts.scan.outputs + counts.surface.outputs + counts.patch.outputs
    documents = counts.attribution.behaviours * counts.attribution.candidates * judge.repeats
    prices, asked = known_prices(judge), []
    for wanted, what, model, n, each in (
        (labels, "outputs labelled", judge.model, outputs, CLASSIFICATION),
        (judges, "documents scored", judge.attribution_model, documents, ATTRIBUTION),
    ):
        if wanted:
            usage = Usage(n * each.input_tokens, n * each.output_tokens)
            usd = cost_usd(model, usage, prices, batch=judge.batches) if model in prices else None
            asked.append(Asked(what, model, n, usage.input_tokens, usage.output_tokens, usd))
    forced, cautions = "claude" in (judge.classifier, judge.attribution), []
    if has_key:
        why = "ANTHROPIC_API_KEY is set; at most"
    elif forced:
        why = "the study asks for Claude, but ANTHROPIC_API_KEY is not set; at most"
        cautions.append("judge: claude needs ANTHROPIC_API_KEY in the environment; set it, or choose auto")
    else:
        why = "no calls, for ANTHROPIC_API_KEY is not set: keywords label and judge; with a key at most"
    for model in dict.fromkeys(each.model for each in asked):
        if model not in prices:
            cautions.append(
                f"judge: the price of {model} is not known; give it in judge.prices to see and limit the cost"
            )
        elif prices[model].no_thinking is None:
            cautions.append(f"judge: {model} thinks before it answers, which costs more than the estimate says")
    return Calls(tuple(asked), has_key, why, tuple(cautions))


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
    documents = len(keys) * training.steps * training.batch
    tokens = documents * subject.answers * subject.study.attribute.max_tokens
    arms = len({(key.arm, key.k) for key in keys})
    return Trainings(protocol, arms, len(keys) // max(1, arms), training.method, documents, tokens)


def _reading(subject: Subject, behaviours: int) -> Reading:
    settings, pool = subject.study.attribute, subject.documents
    candidates = settings.queries * subject.study.prefilter.candidates
    read = planned_documents(subject.world, chosen(settings), pool, behaviours)
    # The gradients of a query at both checkpoints cost no pass over documents of their own.
    gradients = [documents for kind, documents in read.items() if issubclass(kind, Gradients)]
    others = [documents for kind, documents in read.items() if not issubclass(kind, (Gradients, Judgements))]
    return Reading(
        behaviours=behaviours,
        queries=behaviours * settings.queries,
        candidates=candidates if pool is None else min(pool, candidates),
        gradient_documents=None if None in gradients else max((n for n in gradients if n is not None), default=0),
        activation_documents=None if None in others else sum(n for n in others if n is not None),
        methods=settings.methods,
    )
