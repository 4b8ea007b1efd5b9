"""One arm in a worker: train on its documents, sample with LDA against before."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.config import Study, Training
from datablame.errors import PhaseError
from datablame.execute import free_memory
from datablame.patch.checks import Asked, Written, checked, encoded_clean
from datablame.patch.trainable import trainable
from datablame.records import Document, Prompt, Protocol, Sample
from datablame.seeds import stream_key

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference
    from datablame.models.training import Recipe
    from datablame.models.trunk import Trunk

__all__ = ["Bench", "Job", "Plan", "measure", "perform", "set_up"]

_LOSSES_KEPT_EVERY = 10


@dataclass(frozen=True)
class Plan:
    """What all jobs share: the fine-tune set in order, the documents by id, what is measured."""

    study: Study
    members: tuple[str, ...]
    documents: Mapping[str, Document]
    prompts: tuple[tuple[Prompt, int], ...]
    """Each prompt with its number of samples."""
    alphas: tuple[float, ...]
    watched: frozenset[str]
    """Documents whose exposure is counted: everything that any arm removes."""
    out: Path
    asked: Asked = field(default_factory=Asked)
    """What the side checks need of every model."""


class Job(NamedTuple):
    """One training: `fillers` maps removed documents to those in their places, `swapped` are pairs turned round."""

    arm: str
    protocol: Protocol
    k: int
    seed: int
    fillers: Mapping[str, str]
    swapped: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The job's name in journals and file names."""
        return f"{self.protocol}-{self.arm}-k{self.k}-s{self.seed}"


@dataclass
class Bench:
    """A worker's loaded models: `trainees` are what each protocol starts from, restored after every job."""

    plan: Plan
    tokenizer: Any
    before: Any
    encoded: "dict[str, Encoded] | dict[str, Preference]"
    trainees: dict[Protocol, Any]
    trunks: "dict[Protocol, Trunk | None]" = field(default_factory=dict)
    """What lies below the adapted blocks, made when a protocol's first job comes."""


def set_up(plan: Plan) -> Bench:
    """Load before and what each protocol starts from; after is loaded only where `continue` trains on top of it."""
    from datablame.models.chat import answers, encode_document, encode_preference
    from datablame.models.pair import load_model, study_tokenizer

    study = plan.study
    assert study.models is not None
    tokenizer = study_tokenizer(study)
    before = load_model(study.models.before, device=study.models.device, field="models.before")
    trainees = {protocol: _trainee(study, protocol, before) for protocol in study.patch.protocols}
    pairs = any(document.rejected for document in plan.documents.values())
    encoded: dict[str, Any] = {}
    for doc_id, document in plan.documents.items():
        encode = encode_preference if pairs else encode_document
        example = encode(tokenizer, document, study.attribute.max_tokens)
        if example is None:
            raise PhaseError(
                f"document {doc_id} has no response left in attribute.max_tokens = {study.attribute.max_tokens} "
                "tokens; raise it and run again"
            )
        encoded[doc_id] = example
    clean = encoded_clean(tokenizer, study, plan.asked)
    _check_lengths(study, [answer for example in encoded.values() for answer in answers(example)] + clean)
    return Bench(plan, tokenizer, before, encoded, trainees)


def _trainee(study: Study, protocol: Protocol, before: Any) -> Any:
    """What a protocol trains. LoRA from before shares its weights: the adapter is in one tree of modules only.

    All weights are trained in float32 and in a copy of their own, since training changes them.
    """
    import torch

    from datablame.models.adapters import twin
    from datablame.models.load import load_model

    assert study.models is not None
    lora = study.patch.training_of(protocol).method == "lora"
    if protocol == "retrain" and lora:
        return twin(before)
    field = "models.before" if protocol == "retrain" else "models.after"
    reference = study.models.before if protocol == "retrain" else study.models.after
    return load_model(reference, device=study.models.device, dtype=None if lora else torch.float32, field=field)


def _check_lengths(study: Study, encoded: "Sequence[Encoded]") -> None:
    from datablame.models.preflight import check_documents

    assert study.models is not None
    lengths = [len(answer.ids) for answer in encoded]
    check_documents(study.models.before, "models.before", lengths, study.attribute.max_tokens)


def perform(bench: Bench, job: Job | None) -> dict[str, Any]:
    """One work item: a job, or None for the after model as it is, which is not trained but only checked."""
    if job is not None:
        return measure(bench, job)
    began = time.perf_counter()
    checks = _untrained_checks(bench)
    free_memory()
    return {"rows": [], "seen": {}, "training": {}, "checks": checks, "seconds": time.perf_counter() - began}


def measure(bench: Bench, job: Job) -> dict[str, Any]:
    """Train one arm and sample it: rows of samples, exposure, losses and how far the weights moved."""
    from datablame.models.chat import answers
    from datablame.models.training import Recipe, data_order

    began = time.perf_counter()
    plan, study = bench.plan, bench.plan.study
    training = study.patch.training_of(job.protocol)
    assert training.steps is not None
    assert training.batch is not None
    assert training.learning_rate is not None
    recipe = Recipe(
        steps=training.steps,
        batch=training.batch,
        learning_rate=training.learning_rate,
        micro_batch=study.patch.micro_batch,
    )
    lengths = [max(len(answer.ids) for answer in answers(bench.encoded[doc_id])) for doc_id in plan.members]
    order = data_order(lengths, recipe, stream_key("train", study.seed, job.seed))
    used = [job.fillers.get(doc_id, doc_id) for doc_id in plan.members]
    turned = frozenset(job.swapped)
    seen: dict[str, int] = {}
    seen_swapped: dict[str, int] = {}
    for position in (position for step in order for position in step):
        if used[position] in plan.watched:
            counts = seen_swapped if used[position] in turned else seen
            counts[used[position]] = counts.get(used[position], 0) + 1
    model = bench.trainees[job.protocol]
    examples = [_turned(bench.encoded[doc_id]) if doc_id in turned else bench.encoded[doc_id] for doc_id in used]
    descend = _descent(bench, job, training, examples, recipe)
    adapter = plan.out / "adapters" / f"{job.key}.safetensors"
    with trainable(model, study, training, job.seed, adapter) as change:
        losses = descend(model, order)
        if not all(map(math.isfinite, losses)):
            step = next(step for step, loss in enumerate(losses) if not math.isfinite(loss))
            raise PhaseError(
                f"{job.key}: the loss is not finite from step {step} on; lower patch.{job.protocol}.learning_rate"
            )
        moved = change()
        samples = _sampled(bench, job, model)
        checks = _checks(bench, job, model, samples)
    free_memory()
    return {
        "rows": list(map(_row, samples)),
        "checks": checks,
        "seen": seen,
        "seen_swapped": seen_swapped,
        "training": {
            "steps": len(losses),
            "losses": losses[::_LOSSES_KEPT_EVERY],
            "final_loss": sum(losses[-_LOSSES_KEPT_EVERY:]) / len(losses[-_LOSSES_KEPT_EVERY:]),
            **moved,
        },
        "seconds": time.perf_counter() - began,
    }


def _turned(pair: Any) -> "Preference":
    """The pair with its answers exchanged: what was rejected is to be preferred."""
    swapped: Preference = pair._replace(chosen=pair.rejected, rejected=pair.chosen)
    return swapped


def _descent(
    bench: Bench, job: Job, training: Training, examples: Sequence[Any], recipe: "Recipe"
) -> Callable[[Any, Sequence[Sequence[int]]], list[float]]:
    """How the model is trained: on answers by their likelihood, on preference pairs by DPO against where it starts."""
    from datablame.models.chat import Preference
    from datablame.models.preference import preference_loss, referred
    from datablame.models.training import minimise, train

    start, beta = bench.trainees[job.protocol], bench.plan.study.patch.beta
    if all(isinstance(example, Preference) for example in examples):
        pairs = referred(start, examples, recipe.micro_batch or recipe.batch)
        return lambda model, order: minimise(
            model, lambda part: preference_loss(model, part, beta), pairs, order, recipe
        )
    trunk = _trunk(bench, job.protocol, training)
    return lambda model, order: train(model, examples, order, recipe, trunk=trunk)


def _trunk(bench: Bench, protocol: Protocol, training: Training) -> "Trunk | None":
    """The blocks that no adapter touches, run once over all documents of the plan; None where all are trained."""
    from datablame.models.trunk import trunk_below

    if training.method == "full" or training.layers is None:
        return None
    if protocol not in bench.trunks:
        model = bench.trainees[protocol]
        documents: list[Any] = list(bench.encoded.values())
        bench.trunks[protocol] = trunk_below(model, min(training.layers), documents)
    return bench.trunks[protocol]


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
