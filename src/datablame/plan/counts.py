"""How much a study will do: cells, outputs, trainings, documents, and the arithmetic behind them. Upper bounds."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from datablame.attribute.registry import chosen
from datablame.patch.design import trained
from datablame.plan.shapes import Shape, middle_blocks
from datablame.plan.subject import Subject
from datablame.study.schema import Study
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


class Attribution(NamedTuple):
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
    attribution: Attribution
    patch: Sampling
    """Over all trainings."""
    trainings: tuple[Trainings, ...]


def counted(study: Study, subject: Subject) -> Counts:
    """Every count of a study."""
    scanned = _spread([prompt.behaviour for prompt in subject.attribution], study.scan.prompts)
    focus = (min(study.scan.focus, len(scanned)), most_focus(scanned, study.scan.focus))
    trainings = tuple(_trainings(study, subject, protocol) for protocol in study.patch.protocols)
    every = sum(each.trainings for each in trainings)
    surface, held_out = study.surface, len(subject.held_out)
    patch = study.patch
    return Counts(
        scan=_sampling(study, [(len(scanned), study.scan.samples)], study.scan.alphas),
        surface=_sampling(
            study,
            [(focus[1], surface.samples), (held_out, surface.held_out_samples)],
            surface.alphas,
            both=_untruncated(study),
        ),
        focus=focus,
        attribution=_attribution(study, subject, _traced(scanned, focus[1])),
        patch=_sampling(
            study,
            [(every * held_out, patch.samples), (every * focus[1], patch.attribution_samples)],
            # alpha* is one of the surface alphas; which one is not known yet, and none costs more than another.
            tuple(dict.fromkeys((0.0, max(surface.alphas)))),
        ),
        trainings=trainings,
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
    return middle_blocks(shape.layers) if layers is None else tuple(sorted(set(layers)))


def work(study: Study, subject: Subject, counts: Counts) -> dict[str, float] | None:
    """Operations of each phase, to compare studies with; None where a checkpoint's shape is not known.

    Counted are products with weights, at most for every token: 2 for each weight and token forward, 2 backward to the
    inputs of the blocks passed, 2 for each weight whose gradient is formed. Attention's own products are left out.
    """
    if subject.before.found is None or subject.after.found is None:
        return None
    before, after = subject.before.found.shape, subject.after.found.shape
    shape = after if study.attribute.checkpoint == "after" else before

    def sampling(each: Sampling) -> float:
        return _FORWARD * (after.parameters * each.tokens + before.parameters * each.amplified_tokens)

    longest = subject.answers * study.attribute.max_tokens
    attribution = counts.attribution
    blocks = blocks_of(study, shape)
    passed = shape.block_linear_weights * (shape.layers - min(blocks, default=shape.layers))
    head = shape.vocabulary * shape.hidden
    chosen = shape.block_linear_weights * len(blocks)
    a_gradient = _FORWARD * (shape.parameters + chosen) + _BACKWARD * (passed + head)
    reading = (attribution.gradient_documents or 0) * a_gradient
    reading += (attribution.activation_documents or 0) * _FORWARD * shape.parameters
    training = 0.0
    for each in counts.trainings:
        trained = before if each.protocol == "retrain" else after
        own = 2 * trained.parameters if each.method == "full" else 0
        training += each.tokens * ((_FORWARD + _BACKWARD) * trained.parameters + own)
    return {
        "scan": sampling(counts.scan),
        "surface": sampling(counts.surface),
        "attribute": float(longest * reading),
        "patch": training + sampling(counts.patch),
    }


def _spread(behaviours: Sequence[str], n: int) -> list[str]:
    """The behaviours of the `n` prompts that the scan takes in turn."""
    turns: Counter[str] = Counter()
    keyed = []
    order = list(dict.fromkeys(behaviours))
    for behaviour in behaviours:
        keyed.append((turns[behaviour], order.index(behaviour), behaviour))
        turns[behaviour] += 1
    return [behaviour for _, _, behaviour in sorted(keyed)[:n]]


def _traced(scanned: Sequence[str], focus: int) -> int:
    return min(len(set(scanned)), focus)


def _untruncated(study: Study) -> bool:
    """Whether the surface phase keeps log-probabilities, for which the before model runs at alpha 0 too."""
    surface = study.surface
    truncated = surface.top_p < 1 or surface.top_k or surface.min_p or surface.plausibility
    return surface.temperature == 1 and not truncated


def _sampling(
    study: Study, groups: Sequence[tuple[int, int]], alphas: Sequence[float], *, both: bool = False
) -> Sampling:
    """`groups` of (prompts, samples); `both` where log-probabilities make the before model run at alpha 0 too."""
    longest = study.surface.max_new_tokens
    prompts = sum(count for count, _ in groups)
    outputs = sum(count * samples for count, samples in groups)
    amplified = sum(alpha != 0 or both for alpha in alphas)
    return Sampling(
        cells=prompts * len(alphas),
        outputs=outputs * len(alphas),
        tokens=outputs * len(alphas) * longest,
        amplified_tokens=outputs * amplified * longest,
    )


def _trainings(study: Study, subject: Subject, protocol: Protocol) -> Trainings:
    training = study.patch.training_of(protocol)
    arms = len(trained(study, protocol))
    seeds = len(study.patch.seeds_of(protocol))
    assert training.steps is not None
    assert training.batch is not None
    documents = arms * seeds * training.steps * training.batch
    tokens = documents * subject.answers * study.attribute.max_tokens
    return Trainings(protocol, arms, seeds, training.method, documents, tokens)


def _attribution(study: Study, subject: Subject, behaviours: int) -> Attribution:
    settings, prefilter = study.attribute, study.prefilter
    pool = subject.documents
    candidates = settings.queries * prefilter.candidates
    union = behaviours * candidates
    if pool is not None:
        candidates, union = min(pool, candidates), min(pool, union)
    scored = pool if prefilter.method == "none" else union
    needs = {method.needs for method in chosen(settings)}
    # Themes need the candidates' hidden states whatever the methods are; responses are read once more, at before.
    activations = scored if "activations" in needs else union
    responses = scored if "contrast" in needs else 0
    return Attribution(
        behaviours=behaviours,
        queries=behaviours * settings.queries,
        candidates=candidates,
        gradient_documents=scored if needs & {"gradients", "changes"} else 0,
        activation_documents=None if activations is None or responses is None else activations + responses,
        methods=settings.methods,
    )
