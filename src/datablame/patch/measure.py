"""Arms in a worker: trained on their documents, sampled with LDA against before, checked for what removal cost."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from datablame.engine.usage import free_memory
from datablame.errors import PhaseError
from datablame.models.blocks import Trunk, trunk_below
from datablame.models.chat import Encoded, Preference, answers, encode_prompt
from datablame.models.likelihood import divergence, negative_log_likelihood, referred
from datablame.models.load import load_model, twin
from datablame.models.lora import Start
from datablame.models.pair import agreed_tokens
from datablame.models.shared_tokens import Agreed, vocabulary_of
from datablame.models.training import Recipe, data_order
from datablame.patch.checks import drift_outputs
from datablame.patch.finetune import Trained, full_finetune, train_adapters, with_adapter
from datablame.patch.trainings import AFTER_KEY, ArmTraining, Intervention, PatchPlan, specs_of
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
    agreed: Agreed
    before: Any
    encoded: dict[str, Any]
    """Of every document that an arm trains on its tokens: `Encoded`, or `Preference` in a pool of pairs."""
    clean: list[Encoded]
    """What perplexity is measured on; of a pair the chosen answer."""
    trainees: dict[Protocol, Any]
    trunks: dict[Protocol, Trunk | None] = field(default_factory=dict)
    """The blocks that no adapter touches, run once over all documents; None where all are trained, or of pairs."""


def load_worker(plan: PatchPlan) -> WorkerState:
    """Load before and what each protocol starts from; after is loaded only where `continue` trains on top of it.

    LoRA from before shares its weights: the adapter is in one tree of modules only. All weights are trained in float32
    and in a copy of their own, since training changes them.
    """
    world, patch = plan.world, plan.world.study.patch
    before, trainees = _load(world, "before"), {}
    for protocol in patch.protocols:
        if patch.training_of(protocol).method == "full":
            trainees[protocol] = _load(world, "before" if protocol == "retrain" else "after", torch.float32)
        else:
            trainees[protocol] = twin(before) if protocol == "retrain" else _load(world, "after")
    # The pool is read from its beginning to its end; fillers stand in a random order.
    row_of, wanted = world.pool.row_of, [*plan.trained_on, *plan.clean]
    rows = sorted({row_of[doc_id] for doc_id in wanted})
    by_row = dict(zip(rows, world.pool.encoded(rows), strict=True))
    encoded = {doc_id: by_row[row_of[doc_id]] for doc_id in plan.trained_on}
    clean = [answers(by_row[row_of[doc_id]])[0] for doc_id in plan.clean]
    return WorkerState(plan, agreed_tokens(world.models), before, encoded, clean, trainees)


def _load(world: World, side: str, dtype: torch.dtype | None = None) -> Any:
    models = world.models
    return load_model(getattr(models, side), device=models.device, dtype=dtype, field=f"models.{side}")


def measure(state: WorkerState, trainings: Sequence[ArmTraining]) -> dict[str, dict[str, Any]]:
    """Train arms of one protocol and seed, sample each; by key: samples, exposure, training, checks, seconds.

    Adapters are trained at once, all weights one arm after another. The finished ones are trained beside the others,
    but not measured again. Arms that are one training have the result of the first. Where there are none, the
    after model is checked as it is.

    Raises:
        PhaseError: a loss is not finite, or a document does not fit in memory.
    """
    began, plan, study = time.perf_counter(), state.plan, state.plan.world.study
    if not trainings:
        lora = study.patch.training_of("continue").method == "lora"
        after = state.trainees.get("continue") if lora else None
        checks = side_checks(state, after or _load(plan.world, "after"), 0, plan.after)
        free_memory()
        return {AFTER_KEY: {"samples": [], "checks": checks, "seconds": time.perf_counter() - began}}
    protocol, seed = trainings[0].key.protocol, trainings[0].key.seed
    patch, settings, model = study.patch, study.patch.training_of(protocol), state.trainees[protocol]
    shared = settings.model_dump(include={"steps", "batch", "learning_rate"})
    recipe = Recipe(**shared, micro_batch=patch.micro_batch)
    members = (answers(state.encoded[doc_id]) for doc_id in plan.members)
    lengths = [max(len(answer.ids) for answer in longer) for longer in members]
    order = data_order(lengths, recipe, stream_key("train", study.seed, seed))
    seen, examples = zip(*(_training_set(state, training.intervention, order) for training in trainings), strict=True)
    pairs, full = plan.world.pool.summary.pairs, settings.method == "full"
    if pairs:
        # They know what the model that training starts from makes of them.
        distinct = {id(pair): pair for of_training in examples for pair in of_training}
        with_reference = referred(model, list(distinct.values()), recipe.micro_batch or recipe.batch)
        pair_of = dict(zip(distinct, with_reference, strict=True))
        examples = tuple([pair_of[id(pair)] for pair in of_training] for of_training in examples)
    start = Start(patch.rank, settings.layers, stream_key("adapter", study.seed, seed))
    adapters, results = list[Trained](), {}
    if not full:
        if protocol not in state.trunks:
            layers, documents = settings.layers, list(state.encoded.values())
            state.trunks[protocol] = None if layers is None or pairs else trunk_below(model, min(layers), documents)
        adapters = train_adapters(model, examples, order, recipe, start, patch.beta, state.trunks[protocol])
    seconds = (time.perf_counter() - began) / len(trainings)
    for index, training in enumerate(trainings):
        if training.finished:
            continue
        began, key = time.perf_counter(), str(training.key)
        with (
            full_finetune(model, examples[index], order, recipe, patch.beta)
            if full
            else with_adapter(
                model, start, adapters[index], [plan.out / "adapters" / str(arm) for arm in training.keys]
            )
        ) as (losses, change):
            broken = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
            if broken is not None:
                remedy = f"lower patch.{protocol}.learning_rate"
                raise PhaseError(f"{key}: the loss is not finite from step {broken} on; {remedy}")
            model.eval()
            specs = specs_of(plan.prompts, plan.alphas, seed)
            samples = draw(model, state.before, state.agreed, specs, study)
            checks = side_checks(state, model, seed, samples)
            free_memory()
        last = losses[-_KEPT_LOSSES:]
        course = {"steps": len(losses), "losses": losses[::_KEPT_LOSSES], "final_loss": sum(last) / len(last)}
        results[key] = {
            "samples": [{name: getattr(sample, name) for name in _JOURNALLED} for sample in samples],
            "checks": checks,
            **seen[index],
            "training": course | change,
            "seconds": seconds + time.perf_counter() - began,
        }
    return results


def _training_set(
    state: WorkerState, change: Intervention, order: Sequence[Sequence[int]]
) -> tuple[dict[str, Any], list[Any]]:
    """How often a training sees each watched document, and what it sees, position by position."""
    used = [change.fillers.get(doc_id, doc_id) for doc_id in state.plan.members]
    turned = frozenset(change.swapped)
    seen = Counter(used[position] for step in order for position in step if used[position] in state.plan.watched)
    encoded = state.encoded
    # Of a pair that is turned what was rejected is to be preferred.
    examples = [Preference(encoded[d].rejected, encoded[d].chosen) if d in turned else encoded[d] for d in used]
    exposures = ("exposure", False), ("exposure_swapped", True)
    return {name: {d: n for d, n in seen.items() if (d in turned) == swapped} for name, swapped in exposures}, examples


def side_checks(state: WorkerState, model: Any, seed: int, outputs: Sequence[Sample]) -> dict[str, Any]:
    """One model's side checks, made while it is in memory: answers to harmless prompts, at alpha 0, are labelled later.

    Perplexity is exp of `nll`, the mean over response tokens of the clean documents (of a pair: the chosen answer).
    `kl` is KL(model || before) in nats per token on the model's own outputs, their stop tokens' places included,
    between full next-token distributions at temperature 1, whatever the sampler truncates. What is not finite is None.
    """
    world, study = state.plan.world, state.plan.world.study
    texts, tokenizer = {prompt.id: prompt.text for prompt in world.split("held-out")}, state.agreed.tokenizer
    drawn = []
    for output in drift_outputs(outputs, study.seed):
        if generated := output.drawn_ids:
            prompt = encode_prompt(tokenizer, texts[output.prompt_id])
            drawn.append(Encoded([*prompt, *generated], len(prompt)))
    model.eval()
    size = min(vocabulary_of(tokenizer), *state.agreed.tokens.rows)
    sizes = {"vocabulary_size": size, "batch_tokens": study.attribute.batch_tokens}
    clean = negative_log_likelihood(model, state.clean, **sizes)
    drift = divergence(model, state.before, drawn, **sizes)
    nll, kl = (total.mean if total.tokens and math.isfinite(total.nats) else None for total in (clean, drift))
    specs = specs_of([(prompt, study.patch.harmless_samples) for prompt in world.split("harmless")], (0.0,), seed)
    harmless = draw(model, state.before, state.agreed, specs, study) if specs else []
    return {
        "nll": nll,
        "clean_tokens": clean.tokens,
        "kl": kl,
        "kl_tokens": drift.tokens,
        "harmless": [{name: getattr(sample, name) for name in ("prompt_id", "index", "text")} for sample in harmless],
    }
