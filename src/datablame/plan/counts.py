"""How much a study will do: what its own phases would do, and the arithmetic behind it. Upper bounds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datablame.attribute.methods.gradients import Gradients
from datablame.attribute.methods.llm_judge import Judgements
from datablame.attribute.phase import planned_documents
from datablame.attribute.registry import chosen
from datablame.config.schema import Study
from datablame.patch.trainings import measured_prompts, trainings
from datablame.plan.shapes import Shape
from datablame.plan.subject import Subject
from datablame.surface.phase import SampleSpec, sample_specs, scan_specs, spread, surface_specs
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


def counted(subject: Subject) -> Counts:
    """Every count of a study."""
    world, study = subject.world, subject.study
    scanned = spread(world.split("attribution"), study.scan.prompts)
    focus = most_focus([prompt.behaviour for prompt in scanned], study.scan.focus)
    # Which prompts come into focus is not known; none costs more than another.
    focus_ids = [prompt.id for prompt in scanned[:focus]]
    runs = trainings(world)
    # alpha* is one of the surface alphas; which one is not known yet either.
    alphas = tuple(dict.fromkeys((0.0, max(study.surface.alphas))))
    asked = (
        spec for prompt, n in measured_prompts(world, focus_ids) for spec in sample_specs([prompt], alphas, range(n))
    )
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


def _sampling(study: Study, specs: Iterable[SampleSpec], *, both: bool = False) -> Sampling:
    """`both` where log-probabilities make the before model run at alpha 0 too."""
    cells: Counter[tuple[str, float]] = Counter((spec.prompt.id, spec.alpha) for spec in specs)
    outputs, longest = cells.total(), study.surface.max_new_tokens
    amplified = sum(n for (_, alpha), n in cells.items() if alpha != 0 or both)
    return Sampling(len(cells), outputs, outputs * longest, amplified * longest)


def _trainings(subject: Subject, protocol: Protocol) -> Trainings:
    training = subject.study.patch.training_of(protocol)
    keys = [key for key in trainings(subject.world) if key.protocol == protocol]
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
