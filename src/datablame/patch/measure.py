"""Arms in a worker: trained on their documents, sampled with LDA against before, checked for what removal cost."""

import math
import time
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from datablame.engine.execute import free_memory
from datablame.errors import PhaseError
from datablame.models.chat import Encoded, Preference, answers, encode_prompt
from datablame.models.likelihood import divergence, negative_log_likelihood, preference_losses, referred
from datablame.models.load import load_model
from datablame.models.lora import Start
from datablame.models.pair import stop_tokens, vocabulary_of
from datablame.models.training import Recipe, data_order, minimise, train
from datablame.patch.checks import drift_outputs
from datablame.patch.finetune import Describe, full_finetune, train_adapters, with_adapter
from datablame.patch.trainings import AFTER_KEY, AdapterGroup, ArmTraining, Output, unamplified
from datablame.patch.worker import WorkerState
from datablame.seeds import stream_key
from datablame.surface.phase import SampleSpec, draw
from datablame.tables import Protocol, Sample

_KEPT_LOSSES = 10
"""Every tenth loss is kept, and the last ten make the final one."""


class TrainingSet(NamedTuple):
    """What a training sees, position by position, and how often it sees each watched document."""

    training: ArmTraining
    examples: list[Any]
    exposure: dict[str, int]
    exposure_swapped: dict[str, int]


class _Trained(NamedTuple):
    """A finished training, yielded while the model is as it left it."""

    data: TrainingSet
    losses: list[float]
    describe: Describe
    seconds: float


def perform(state: WorkerState, group: AdapterGroup | None) -> dict[str, dict[str, Any]]:
    """One work item by key: trainings, or None for the after model as it is, which is not trained but only checked."""
    if group is not None:
        return measure(state, *group.trainings, skip=group.finished)
    began = time.perf_counter()
    checks = _after_checks(state)
    free_memory()
    return {AFTER_KEY: {"samples": [], "checks": checks, "seconds": time.perf_counter() - began}}


def measure(state: WorkerState, *trainings: ArmTraining, skip: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Train arms of one protocol and seed, sample each; by key: samples, exposure, training, checks, seconds.

    Raises:
        PhaseError: a loss is not finite, or a document does not fit in memory.
    """
    results = {}
    with closing(_in_turn(state, trainings, skip)) as trained:
        for data, losses, describe, seconds in trained:
            began, key = time.perf_counter(), data.training.key
            if not all(map(math.isfinite, losses)):
                step = next(step for step, loss in enumerate(losses) if not math.isfinite(loss))
                raise PhaseError(
                    f"{key}: the loss is not finite from step {step} on; lower patch.{key.protocol}.learning_rate"
                )
            moved, model = describe(), state.trainees[key.protocol]
            samples = _sampled(state, key.seed, model)
            checks = side_checks(state, model, key.seed, unamplified(samples))
            free_memory()
            results[str(key)] = {
                "samples": list(map(_journalled, samples)),
                "checks": checks,
                "exposure": data.exposure,
                "exposure_swapped": data.exposure_swapped,
                "training": {
                    "steps": len(losses),
                    "losses": losses[::_KEPT_LOSSES],
                    "final_loss": sum(losses[-_KEPT_LOSSES:]) / len(losses[-_KEPT_LOSSES:]),
                    **moved,
                },
                "seconds": seconds + time.perf_counter() - began,
            }
    return results


def _in_turn(
    state: WorkerState, trainings: Sequence[ArmTraining], skip: Collection[str]
) -> Generator[_Trained, None, None]:
    """Each training, while the model is as it left it: adapters trained at once, or all weights of one arm."""
    began, study = time.perf_counter(), state.world.study
    protocol, seed = trainings[0].key.protocol, trainings[0].key.seed
    settings, model, recipe = study.patch.training_of(protocol), state.trainees[protocol], _recipe(state, protocol)
    order = data_order(_lengths(state), recipe, stream_key("train", study.seed, seed))
    sets = [_training_set(state, training, order) for training in trainings]
    examples = _with_references(state, sets, recipe)
    if settings.method == "full":
        for data, own in zip(sets, examples, strict=True):
            with full_finetune(model) as describe:
                losses = _train_all_weights(model, own, order, recipe, study.patch.beta)
                yield _Trained(data, losses, describe, time.perf_counter() - began)
            began = time.perf_counter()
        return
    start = Start(study.patch.rank, settings.layers, stream_key("adapter", study.seed, seed))
    trunk = state.trunk(protocol, settings)
    adapters = train_adapters(model, examples, order, recipe, start, study.patch.beta, trunk)
    seconds = (time.perf_counter() - began) / len(trainings)
    for data, adapter in zip(sets, adapters, strict=True):
        key = str(data.training.key)
        if key not in skip:
            path = state.plan.out / "adapters" / f"{key}.safetensors"
            with with_adapter(model, start, adapter.factors, path) as describe:
                yield _Trained(data, adapter.losses, describe, seconds)


def _recipe(state: WorkerState, protocol: Protocol) -> Recipe:
    patch = state.world.study.patch
    training = patch.training_of(protocol)
    assert training.steps is not None
    assert training.batch is not None
    assert training.learning_rate is not None
    return Recipe(training.steps, training.batch, training.learning_rate, micro_batch=patch.micro_batch)


def _lengths(state: WorkerState) -> list[int]:
    """Tokens of the longer answer of every document of the fine-tune set."""
    members = (state.encoded[doc_id] for doc_id in state.plan.members)
    return [max(len(answer.ids) for answer in answers(example)) for example in members]


def _training_set(state: WorkerState, training: ArmTraining, order: Sequence[Sequence[int]]) -> TrainingSet:
    plan, change = state.plan, training.intervention
    used = [change.fillers.get(doc_id, doc_id) for doc_id in plan.members]
    turned = frozenset(change.swapped)
    seen = Counter(used[position] for step in order for position in step if used[position] in plan.watched)
    examples = [state.encoded[doc_id] for doc_id in used]
    for position, pair in enumerate(examples):
        if used[position] in turned:
            # What was rejected is to be preferred.
            examples[position] = pair._replace(chosen=pair.rejected, rejected=pair.chosen)
    swapped = {doc_id: count for doc_id, count in seen.items() if doc_id in turned}
    return TrainingSet(training, examples, dict(seen - Counter(swapped)), swapped)


def _with_references(state: WorkerState, sets: Sequence[TrainingSet], recipe: Recipe) -> list[list[Any]]:
    """Each training's documents; preference pairs know what the model that training starts from makes of them."""
    if not isinstance(sets[0].examples[0], Preference):
        return [data.examples for data in sets]
    distinct = {id(pair): pair for data in sets for pair in data.examples}
    start = state.trainees[sets[0].training.key.protocol]
    pairs = referred(start, list(distinct.values()), recipe.micro_batch or recipe.batch)
    with_reference = dict(zip(distinct, pairs, strict=True))
    return [[with_reference[id(pair)] for pair in data.examples] for data in sets]


def _train_all_weights(
    model: Any, examples: Sequence[Any], order: Sequence[Sequence[int]], recipe: Recipe, beta: float
) -> list[float]:
    """Losses by step: on answers by their likelihood, on preference pairs by DPO against where training starts."""
    if isinstance(examples[0], Preference):
        losses = minimise(model, lambda part: preference_losses(model, part, beta).mean(), examples, order, recipe)
        return [loss for (loss,) in losses]
    return train(model, examples, order, recipe)


def _sampled(state: WorkerState, seed: int, model: Any) -> list[Sample]:
    """Samples at every alpha of the plan; arms of one seed share their random numbers.

    Seed s draws the sample indices from s * n on, so that seeds don't repeat one another's noise.
    """
    plan = state.plan
    specs = [
        SampleSpec(prompt, alpha, seed * samples + index)
        for prompt, samples in plan.prompts
        for alpha in plan.alphas
        for index in range(samples)
    ]
    model.eval()
    return draw(model, state.before, state.tokenizer, specs, plan.world.study)


def _journalled(sample: Sample) -> dict[str, Any]:
    """What is kept of a sample until the phase is done; its label is added."""
    return {name: getattr(sample, name) for name in ("prompt_id", "behaviour", "split", "alpha", "index", "text")}


def side_checks(state: WorkerState, model: Any, seed: int, outputs: Sequence[Output]) -> dict[str, Any]:
    """One model's side checks, made while it is in memory: answers to harmless prompts are labelled later.

    Perplexity is exp of `nll`, the mean over response tokens of the clean documents (of a pair: the chosen answer).
    `kl` is KL(model || before) in nats per token on the given outputs, their stop tokens' places included, between the
    models' full next-token distributions: whatever the sampler truncates, temperature 1. For a model that was trained
    they are its own. A value that is not finite is None.
    """
    study = state.world.study
    sizes = {"vocabulary_size": vocabulary_of(state.tokenizer), "batch_tokens": study.attribute.batch_tokens}
    texts = {prompt.id: prompt.text for prompt in state.world.split("held-out")}
    prompts = {name: encode_prompt(state.tokenizer, texts[name]) for name in {output.prompt_id for output in outputs}}
    [stop, *_] = stop_tokens(state.tokenizer, model)
    drawn = []
    for output in drift_outputs(outputs, study.seed):
        # Which stop token it was plays no part: only what stands before a position does.
        ids = [*prompts[output.prompt_id], *output.token_ids, *([stop] if output.stopped else [])]
        drawn.append(Encoded(ids, len(prompts[output.prompt_id])))
    drawn = [encoded for encoded in drawn if len(encoded.ids) > encoded.prompt_tokens]
    model.eval()
    nll = negative_log_likelihood(model, state.clean, **sizes) if state.clean else None
    drift = divergence(model, state.before, drawn, **sizes) if drawn else None
    return {
        "nll": _finite(nll.mean) if nll is not None else None,
        "clean_tokens": nll.tokens if nll is not None else 0,
        "kl": _finite(drift.mean) if drift is not None else None,
        "kl_tokens": drift.tokens if drift is not None else 0,
        "harmless": _answers(state, model, seed),
    }


def _answers(state: WorkerState, model: Any, seed: int) -> list[dict[str, Any]]:
    """Outputs at alpha 0; arms of one seed share their random numbers, as in every other measurement."""
    study = state.world.study
    samples = study.patch.harmless_samples
    specs = [
        SampleSpec(prompt, 0.0, seed * samples + index)
        for prompt in state.plan.checks.harmless
        for index in range(samples)
    ]
    drawn = draw(model, state.before, state.tokenizer, specs, study) if specs else []
    return [{"prompt_id": sample.prompt_id, "index": sample.index, "text": sample.text} for sample in drawn]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _after_checks(state: WorkerState) -> dict[str, Any]:
    """Those of the after model: what `continue` adapts, else loaded for this alone."""
    models, patch = state.world.models, state.world.study.patch
    after = state.trainees.get("continue")
    if after is None or patch.training_of("continue").method == "full":
        after = load_model(models.after, device=models.device, field="models.after")
    return side_checks(state, after, 0, state.plan.checks.after)
