"""One arm in a worker: train on its documents, sample with LDA against before."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.config import Study, Training
from datablame.errors import PhaseError
from datablame.execute import free_memory
from datablame.records import Document, Prompt, Protocol
from datablame.seeds import stream_key

if TYPE_CHECKING:
    from torch import nn

    from datablame.models.chat import Encoded, Preference
    from datablame.models.training import Recipe
    from datablame.models.trunk import Trunk

__all__ = ["Bench", "Job", "Plan", "measure", "set_up"]

_logger = logging.getLogger(__name__)
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


class Job(NamedTuple):
    """One training: `fillers` maps removed documents to those in their places."""

    arm: str
    protocol: Protocol
    k: int
    seed: int
    fillers: Mapping[str, str]

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
    from datablame.models.chat import encode_document, encode_preference
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
    _check_lengths(study, encoded)
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


def _check_lengths(study: Study, encoded: "Mapping[str, Encoded | Preference]") -> None:
    from datablame.models.chat import answers
    from datablame.models.preflight import check_documents

    assert study.models is not None
    lengths = [len(answer.ids) for example in encoded.values() for answer in answers(example)]
    check_documents(study.models.before, "models.before", lengths, study.attribute.max_tokens)


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
    seen: dict[str, int] = {}
    for position in (position for step in order for position in step):
        if used[position] in plan.watched:
            seen[used[position]] = seen.get(used[position], 0) + 1
    model = bench.trainees[job.protocol]
    examples = [bench.encoded[doc_id] for doc_id in used]
    descend = _descent(bench, job, training, examples, recipe)
    with _trainable(bench, job, training, model) as change:
        losses = descend(model, order)
        if not all(map(math.isfinite, losses)):
            step = next(step for step, loss in enumerate(losses) if not math.isfinite(loss))
            raise PhaseError(
                f"{job.key}: the loss is not finite from step {step} on; lower patch.{job.protocol}.learning_rate"
            )
        moved = change()
        rows = _sampled(bench, job, model)
    free_memory()
    return {
        "rows": rows,
        "seen": seen,
        "training": {
            "steps": len(losses),
            "losses": losses[::_LOSSES_KEPT_EVERY],
            "final_loss": sum(losses[-_LOSSES_KEPT_EVERY:]) / len(losses[-_LOSSES_KEPT_EVERY:]),
            **moved,
        },
        "seconds": time.perf_counter() - began,
    }


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


class _Change:
    """Says how far training moved the weights, while they are still moved."""

    def __init__(self, model: "nn.Module", start: dict[str, Any]) -> None:
        self._model, self._start = model, start

    def __call__(self) -> dict[str, Any]:
        # Parameters, for the state dict lists tied weights twice.
        total = sum(
            float((parameter.detach().float() - self._start[name].float()).pow(2).sum())
            for name, parameter in self._model.named_parameters()
        )
        return {"weight_change_norm": math.sqrt(total), "modules": len(self._start), "matched_modules": ["all"]}


@contextlib.contextmanager
def _trainable(bench: Bench, job: Job, training: Training, model: Any) -> Iterator[Any]:
    """The model ready to train; yields a function that describes the change. Afterwards the model is as it was."""
    from datablame.patch.lora import adapted, adapter_norm, save_adapter

    if training.method == "full":
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.requires_grad_(True)
        try:
            yield _Change(model, start)
        finally:
            model.load_state_dict(start)
            model.requires_grad_(False)
        return
    study = bench.plan.study
    key = stream_key("adapter", study.seed, job.seed)
    with adapted(model, study.patch.rank, training.layers, key) as adapter:

        def describe() -> dict[str, Any]:
            save_adapter(adapter, bench.plan.out / "adapters" / f"{job.key}.safetensors")
            matched = sorted({name.rpartition(".")[2] for name in adapter.modules})
            norm = adapter_norm(adapter)
            _logger.info(
                "%s: LoRA on %d modules (%s), norm %.3g", job.key, len(adapter.modules), ", ".join(matched), norm
            )
            return {"weight_change_norm": norm, "modules": len(adapter.modules), "matched_modules": matched}

        yield describe


def _sampled(bench: Bench, job: Job, model: Any) -> list[dict[str, Any]]:
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
    samples = draw_requests(model, bench.before, bench.tokenizer, draws, plan.study)
    return [
        {
            "prompt_id": sample.prompt_id,
            "behaviour": sample.behaviour,
            "split": sample.split,
            "alpha": sample.alpha,
            "index": sample.index,
            "text": sample.text,
        }
        for sample in samples
    ]
