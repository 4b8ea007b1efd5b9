"""Arms in a worker: trained on their documents, sampled with LDA against before, checked for what removal cost."""

import math
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from datablame.config.schema import Training
from datablame.engine.execute import free_memory
from datablame.errors import PhaseError
from datablame.models.blocks import Trunk, trunk_below
from datablame.models.chat import Encoded, Preference, answers, encode_prompt
from datablame.models.likelihood import divergence, negative_log_likelihood, preference_losses, referred
from datablame.models.load import load_model, twin
from datablame.models.lora import Start
from datablame.models.pair import stop_tokens, study_tokenizer, vocabulary_of
from datablame.models.training import Recipe, data_order, minimise, train
from datablame.patch.checks import drift_outputs
from datablame.patch.finetune import full_finetune, train_adapters, with_adapter
from datablame.patch.trainings import AFTER_KEY, ArmTraining, PatchPlan, specs_of, unamplified
from datablame.seeds import stream_key
from datablame.surface.phase import draw
from datablame.tables import Protocol, Sample
from datablame.world import World

_KEPT_LOSSES = 10
"""Every tenth loss is kept, and the last ten make the final one."""
_JOURNALLED = ("prompt_id", "behaviour", "split", "alpha", "index", "text")
"""What is kept of a sample until the phase is done; its label is added."""


@dataclass
class WorkerState:
    """A worker's loaded models: `trainees` are what each protocol starts from, restored after every training."""

    plan: PatchPlan
    tokenizer: Any
    before: Any
    encoded: dict[str, Any]
    """Of every document that an arm trains on its tokens: `Encoded`, or `Preference` in a pool of pairs."""
    clean: list[Encoded]
    """What perplexity is measured on; of a pair the chosen answer."""
    trainees: dict[Protocol, Any]
    trunks: dict[Protocol, Trunk | None] = field(default_factory=dict)
    """What lies below the adapted blocks, made when a protocol's first training comes."""

    @property
    def world(self) -> World:
        """The study and its pool."""
        return self.plan.world

    def trunk(self, protocol: Protocol, training: Training) -> Trunk | None:
        """The blocks that no adapter touches, run once over all documents of the plan; None where all are trained.

        Preference pairs run the whole model.
        """
        if training.method == "full" or training.layers is None or self.world.pool.summary.pairs:
            return None
        if protocol not in self.trunks:
            documents = list(self.encoded.values())
            self.trunks[protocol] = trunk_below(self.trainees[protocol], min(training.layers), documents)
        return self.trunks[protocol]


def load_worker(plan: PatchPlan) -> WorkerState:
    """Load before and what each protocol starts from; after is loaded only where `continue` trains on top of it.

    LoRA from before shares its weights: the adapter is in one tree of modules only. All weights are trained in float32
    and in a copy of their own, since training changes them.
    """
    world = plan.world
    before = load_model(world.models.before, device=world.models.device, field="models.before")
    trainees = {}
    for protocol in world.study.patch.protocols:
        lora = world.study.patch.training_of(protocol).method == "lora"
        side, dtype = "before" if protocol == "retrain" else "after", None if lora else torch.float32
        trainees[protocol] = (
            twin(before)
            if protocol == "retrain" and lora
            else load_model(
                getattr(world.models, side), device=world.models.device, dtype=dtype, field=f"models.{side}"
            )
        )
    clean = [e.chosen if isinstance(e, Preference) else e for e in _tokens(world, plan.clean).values()]
    tokenizer = study_tokenizer(world.study)
    return WorkerState(plan, tokenizer, before, _tokens(world, plan.trained_on), clean, trainees)


def _tokens(world: World, ids: Iterable[str]) -> dict[str, Any]:
    """Token ids by document, in the order of `ids`; the pool is read from its beginning to its end."""
    wanted = list(dict.fromkeys(ids))
    rows = sorted(world.pool.row_of[doc_id] for doc_id in wanted)
    by_row = dict(zip(rows, world.pool.encoded(rows), strict=True))
    return {doc_id: by_row[world.pool.row_of[doc_id]] for doc_id in wanted}


def perform(state: WorkerState, group: Sequence[ArmTraining]) -> dict[str, dict[str, Any]]:
    """One work item by key: trainings, or none for the after model as it is, which is not trained but only checked."""
    if group:
        return measure(state, *group)
    began = time.perf_counter()
    models, patch = state.world.models, state.world.study.patch
    after = state.trainees.get("continue")
    if after is None or patch.training_of("continue").method == "full":
        after = load_model(models.after, device=models.device, field="models.after")
    checks = side_checks(state, after, 0, state.plan.after)
    del after
    free_memory()
    return {AFTER_KEY: {"samples": [], "checks": checks, "seconds": time.perf_counter() - began}}


def measure(state: WorkerState, *trainings: ArmTraining) -> dict[str, dict[str, Any]]:
    """Train arms of one protocol and seed, sample each; by key: samples, exposure, training, checks, seconds.

    The finished ones are trained beside the others, but not measured again.

    Raises:
        PhaseError: a loss is not finite, or a document does not fit in memory.
    """
    results = {}
    protocol, seed = trainings[0].key.protocol, trainings[0].key.seed
    model = state.trainees[protocol]
    with closing(_in_turn(state, trainings)) as trained:
        for key, exposure, losses, moved, seconds in trained:
            began = time.perf_counter()
            model.eval()
            specs = specs_of(state.plan.prompts, state.plan.alphas, seed)
            samples = draw(model, state.before, state.tokenizer, specs, state.world.study)
            checks = side_checks(state, model, seed, unamplified(samples))
            free_memory()
            results[key] = {
                "samples": [{name: getattr(sample, name) for name in _JOURNALLED} for sample in samples],
                "checks": checks,
                **exposure,
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
    state: WorkerState, trainings: Sequence[ArmTraining]
) -> Generator[tuple[str, dict[str, Any], list[float], dict[str, Any], float], None, None]:
    """Each training's key, exposure, losses, change of the weights and seconds, while the model is as it left it.

    Adapters are trained at once, all weights one arm after another.
    """
    began, study, patch = time.perf_counter(), state.world.study, state.world.study.patch
    protocol, seed = trainings[0].key.protocol, trainings[0].key.seed
    settings, model = patch.training_of(protocol), state.trainees[protocol]
    assert settings.steps is not None
    assert settings.batch is not None
    assert settings.learning_rate is not None
    recipe = Recipe(settings.steps, settings.batch, settings.learning_rate, micro_batch=patch.micro_batch)
    members = (answers(state.encoded[doc_id]) for doc_id in state.plan.members)
    lengths = [max(len(answer.ids) for answer in longer) for longer in members]
    order = data_order(lengths, recipe, stream_key("train", study.seed, seed))
    examples, exposures = zip(*(_training_set(state, training, order) for training in trainings), strict=True)
    keys, pairs = [str(training.key) for training in trainings], isinstance(examples[0][0], Preference)
    if pairs:
        examples = _with_references(model, examples, recipe)
    if settings.method == "full":

        def preferred(part: Sequence[Any]) -> torch.Tensor:
            return preference_losses(model, part, patch.beta).mean()

        for key, exposure, own in zip(keys, exposures, examples, strict=True):
            with full_finetune(model) as moved:
                losses = (
                    [loss for (loss,) in minimise(model, preferred, own, order, recipe)]
                    if pairs
                    else train(model, own, order, recipe)
                )
                _require_finite(key, protocol, losses)
                yield key, exposure, losses, moved(), time.perf_counter() - began
            began = time.perf_counter()
        return
    start = Start(patch.rank, settings.layers, stream_key("adapter", study.seed, seed))
    adapters = train_adapters(model, examples, order, recipe, start, patch.beta, state.trunk(protocol, settings))
    seconds = (time.perf_counter() - began) / len(trainings)
    for training, key, exposure, adapter in zip(trainings, keys, exposures, adapters, strict=True):
        if not training.finished:
            path = state.plan.out / "adapters" / f"{key}.safetensors"
            _require_finite(key, protocol, adapter.losses)
            with with_adapter(model, start, adapter.factors, path) as change:
                yield key, exposure, adapter.losses, change, seconds


def _require_finite(key: str, protocol: Protocol, losses: Sequence[float]) -> None:
    broken = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if broken is not None:
        raise PhaseError(f"{key}: the loss is not finite from step {broken} on; lower patch.{protocol}.learning_rate")


def _training_set(
    state: WorkerState, training: ArmTraining, order: Sequence[Sequence[int]]
) -> tuple[list[Any], dict[str, Any]]:
    """What a training sees, position by position, and how often it sees each watched document."""
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
    return examples, {"exposure": dict(seen - Counter(swapped)), "exposure_swapped": swapped}


def _with_references(model: Any, examples: Sequence[list[Any]], recipe: Recipe) -> tuple[list[Any], ...]:
    """Preference pairs that know what the model that training starts from makes of them."""
    distinct = {id(pair): pair for own in examples for pair in own}
    pairs = referred(model, list(distinct.values()), recipe.micro_batch or recipe.batch)
    with_reference = dict(zip(distinct, pairs, strict=True))
    return tuple([with_reference[id(pair)] for pair in own] for own in examples)


def side_checks(state: WorkerState, model: Any, seed: int, outputs: Sequence[Sample]) -> dict[str, Any]:
    """One model's side checks, made while it is in memory: answers to harmless prompts are labelled later.

    Perplexity is exp of `nll`, the mean over response tokens of the clean documents (of a pair: the chosen answer).
    `kl` is KL(model || before) in nats per token on the given outputs, their stop tokens' places included, between the
    models' full next-token distributions: whatever the sampler truncates, temperature 1. For a model that was trained
    they are its own. A value that is not finite is None. Answers are drawn at alpha 0; arms of one seed share their
    random numbers, as in every other measurement.
    """
    study, world = state.world.study, state.world
    sizes = {"vocabulary_size": vocabulary_of(state.tokenizer), "batch_tokens": study.attribute.batch_tokens}
    texts = {prompt.id: prompt.text for prompt in world.split("held-out")}
    prompts = {name: encode_prompt(state.tokenizer, texts[name]) for name in {output.prompt_id for output in outputs}}
    [stop, *_] = stop_tokens(state.tokenizer, model)
    drawn = []
    for output in drift_outputs(outputs, study.seed):
        # Which stop token it was plays no part: only what stands before a position does.
        if generated := [*output.token_ids, *([stop] if output.finish_reason == "stop" else [])]:
            prompt = prompts[output.prompt_id]
            drawn.append(Encoded([*prompt, *generated], len(prompt)))
    model.eval()
    nll = negative_log_likelihood(model, state.clean, **sizes) if state.clean else None
    drift = divergence(model, state.before, drawn, **sizes) if drawn else None
    specs = specs_of([(prompt, study.patch.harmless_samples) for prompt in world.split("harmless")], (0.0,), seed)
    harmless = draw(model, state.before, state.tokenizer, specs, study) if specs else []
    return {
        "nll": nll.mean if nll is not None and math.isfinite(nll.mean) else None,
        "clean_tokens": nll.tokens if nll is not None else 0,
        "kl": drift.mean if drift is not None and math.isfinite(drift.mean) else None,
        "kl_tokens": drift.tokens if drift is not None else 0,
        "harmless": [{name: getattr(sample, name) for name in ("prompt_id", "index", "text")} for sample in harmless],
    }
