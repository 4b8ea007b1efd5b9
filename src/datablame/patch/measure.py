"""Arms in a worker: trained on their documents, sampled with LDA against before, asked what removal cost."""

import math
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.engine.execute import free_memory
from datablame.errors import PhaseError
from datablame.patch.bench import Bench, Job, trunk_of
from datablame.patch.checks import Written, checked
from datablame.patch.trainable import carrying, free_to_move
from datablame.seeds import stream_key
from datablame.tables import Protocol, Sample

if TYPE_CHECKING:
    from datablame.models.chat import Preference
    from datablame.models.training import Recipe
    from datablame.patch.trainable import Describe


UNTRAINED_KEY = "untrained"
"""The journal's key of the after model's own side checks."""
_LOSSES_KEPT_EVERY = 10


class Together(NamedTuple):
    """Jobs of one protocol and seed whose adapters are trained at once.

    The `finished` ones are trained again after an interruption all the same, so that the others end with the same
    bytes, but not measured again.
    """

    jobs: tuple[Job, ...]
    finished: frozenset[str] = frozenset()


class _Course(NamedTuple):
    """What a job trains on, position by position, and how often it sees each watched document."""

    job: Job
    examples: list[Any]
    seen: dict[str, int]
    seen_swapped: dict[str, int]


class _Trained(NamedTuple):
    """A job's training, yielded while the model is as it left it."""

    course: _Course
    losses: list[float]
    describe: "Describe"
    seconds: float


def perform(bench: Bench, item: Together | None) -> dict[str, dict[str, Any]]:
    """One work item: jobs, or None for the after model as it is, which is not trained but only checked; by key."""
    if item is not None:
        return measure(bench, *item.jobs, skip=item.finished)
    began = time.perf_counter()
    checks = _untrained_checks(bench)
    free_memory()
    empty: dict[str, Any] = {"rows": [], "seen": {}, "training": {}}
    return {UNTRAINED_KEY: {**empty, "checks": checks, "seconds": time.perf_counter() - began}}


def measure(bench: Bench, *jobs: Job, skip: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Train arms of one protocol and seed, sample each; by key: rows of samples, exposure, losses, checks.

    Raises:
        PhaseError: a loss is not finite, or a document does not fit in memory.
    """
    results = {}
    with closing(_in_turn(bench, jobs, skip)) as trainings:
        for course, losses, describe, seconds in trainings:
            began, job = time.perf_counter(), course.job
            if not all(map(math.isfinite, losses)):
                step = next(step for step, loss in enumerate(losses) if not math.isfinite(loss))
                raise PhaseError(
                    f"{job.key}: the loss is not finite from step {step} on; lower patch.{job.protocol}.learning_rate"
                )
            moved, model = describe(), bench.trainees[job.protocol]
            samples = _sampled(bench, job, model)
            checks = _checks(bench, job, model, samples)
            free_memory()
            results[job.key] = {
                "rows": list(map(_row, samples)),
                "checks": checks,
                "seen": course.seen,
                "seen_swapped": course.seen_swapped,
                "training": {
                    "steps": len(losses),
                    "losses": losses[::_LOSSES_KEPT_EVERY],
                    "final_loss": sum(losses[-_LOSSES_KEPT_EVERY:]) / len(losses[-_LOSSES_KEPT_EVERY:]),
                    **moved,
                },
                "seconds": seconds + time.perf_counter() - began,
            }
    return results


def _in_turn(bench: Bench, jobs: Sequence[Job], skip: Collection[str]) -> Generator[_Trained]:
    """Each job's training, while the model is as it left it: adapters trained at once, or all weights of one job."""
    from datablame.models.lora import Start
    from datablame.models.training import data_order
    from datablame.patch.side_by_side import train_adapters

    began, study = time.perf_counter(), bench.plan.study
    protocol, seed = jobs[0].protocol, jobs[0].seed
    training, model, recipe = study.patch.training_of(protocol), bench.trainees[protocol], _recipe(bench, protocol)
    order = data_order(_lengths(bench), recipe, stream_key("train", study.seed, seed))
    courses = [_course(bench, job, order) for job in jobs]
    examples = _with_references(bench, courses, recipe)
    if training.method == "full":
        for course, own in zip(courses, examples, strict=True):
            with free_to_move(model) as describe:
                losses = _descend(model, own, order, recipe, study.patch.beta)
                yield _Trained(course, losses, describe, time.perf_counter() - began)
            began = time.perf_counter()
        return
    start, beta = Start(study.patch.rank, training.layers, stream_key("adapter", study.seed, seed)), study.patch.beta
    trained = train_adapters(model, examples, order, recipe, start, beta, trunk_of(bench, protocol, training))
    seconds = (time.perf_counter() - began) / len(jobs)
    for course, adapter in zip(courses, trained, strict=True):
        if course.job.key not in skip:
            path = bench.plan.out / "adapters" / f"{course.job.key}.safetensors"
            with carrying(model, start, adapter.factors, path) as describe:
                yield _Trained(course, adapter.losses, describe, seconds)


def _recipe(bench: Bench, protocol: Protocol) -> "Recipe":
    from datablame.models.training import Recipe

    study = bench.plan.study
    training = study.patch.training_of(protocol)
    assert training.steps is not None
    assert training.batch is not None
    assert training.learning_rate is not None
    return Recipe(training.steps, training.batch, training.learning_rate, micro_batch=study.patch.micro_batch)


def _lengths(bench: Bench) -> list[int]:
    """Tokens of the longer answer of every document of the fine-tune set."""
    from datablame.models.chat import answers

    return [max(len(answer.ids) for answer in answers(bench.encoded[doc_id])) for doc_id in bench.plan.members]


def _course(bench: Bench, job: Job, order: Sequence[Sequence[int]]) -> _Course:
    plan = bench.plan
    used = [job.fillers.get(doc_id, doc_id) for doc_id in plan.members]
    turned = frozenset(job.swapped)
    seen: dict[str, int] = {}
    seen_swapped: dict[str, int] = {}
    for position in (position for step in order for position in step):
        if used[position] in plan.watched:
            counts = seen_swapped if used[position] in turned else seen
            counts[used[position]] = counts.get(used[position], 0) + 1
    examples = [_turned(bench.encoded[doc_id]) if doc_id in turned else bench.encoded[doc_id] for doc_id in used]
    return _Course(job, examples, seen, seen_swapped)


def _turned(pair: Any) -> "Preference":
    """The pair with its answers exchanged: what was rejected is to be preferred."""
    swapped: Preference = pair._replace(chosen=pair.rejected, rejected=pair.chosen)
    return swapped


def _with_references(bench: Bench, courses: Sequence[_Course], recipe: "Recipe") -> list[list[Any]]:
    """Each job's documents; preference pairs know what the model that training starts from makes of them."""
    from datablame.models.chat import Preference
    from datablame.models.preference import referred

    if not isinstance(courses[0].examples[0], Preference):
        return [course.examples for course in courses]
    distinct = {id(pair): pair for course in courses for pair in course.examples}
    start = bench.trainees[courses[0].job.protocol]
    known = dict(
        zip(distinct, referred(start, list(distinct.values()), recipe.micro_batch or recipe.batch), strict=True)
    )
    return [[known[id(pair)] for pair in course.examples] for course in courses]


def _descend(
    model: Any, examples: Sequence[Any], order: Sequence[Sequence[int]], recipe: "Recipe", beta: float
) -> list[float]:
    """Train all weights: on answers by their likelihood, on preference pairs by DPO against where training starts."""
    from datablame.models.chat import Preference
    from datablame.models.preference import preference_loss
    from datablame.models.training import minimise, train

    if isinstance(examples[0], Preference):
        return minimise(model, lambda part: preference_loss(model, part, beta), examples, order, recipe)
    return train(model, examples, order, recipe)


def _sampled(bench: Bench, job: Job, model: Any) -> list[Sample]:
    """Samples at every alpha of the plan; arms of one seed share their random numbers.

    Seed s draws the sample indices from s * n on, so that seeds don't repeat one another's noise.
    """
    from datablame.surface.draw import draw_requests, draws_of

    plan = bench.plan
    wanted = [
        (prompt, alpha, job.seed * samples + index)
        for prompt, samples in plan.prompts
        for alpha in plan.alphas
        for index in range(samples)
    ]
    model.eval()
    draws = draws_of(bench.tokenizer, wanted, plan.study.seed)
    return draw_requests(model, bench.before, bench.tokenizer, draws, plan.study)


def _row(sample: Sample) -> dict[str, Any]:
    """What is kept of a sample."""
    return {
        "prompt_id": sample.prompt_id,
        "behaviour": sample.behaviour,
        "split": sample.split,
        "alpha": sample.alpha,
        "index": sample.index,
        "text": sample.text,
    }


def _checks(bench: Bench, job: Job, model: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """The side checks of a model that training has changed; its drift from before on what it drew itself."""
    drawn = [
        Written(sample.prompt_id, sample.index, sample.token_ids, sample.finish_reason == "stop")
        for sample in samples
        if sample.alpha == 0 and sample.split == "held-out"
    ]
    plan = bench.plan
    return checked(model, bench.before, bench.tokenizer, plan.study, plan.asked, job.seed, drawn)


def _untrained_checks(bench: Bench) -> dict[str, Any]:
    """Those of the after model: what `continue` adapts, else loaded for this alone."""
    from datablame.models.load import load_model

    plan = bench.plan
    models = plan.study.models
    assert models is not None
    after = bench.trainees.get("continue")
    if after is None or plan.study.patch.training_of("continue").method == "full":
        after = load_model(models.after, device=models.device, field="models.after")
    return checked(after, bench.before, bench.tokenizer, plan.study, plan.asked, 0, plan.asked.untrained)
