"""What removal must not cost, measured in a worker: likelihood of clean text, answers to harmless questions, drift."""

import math
from collections.abc import Sequence
from typing import Any

from datablame.models.chat import Encoded, encode_prompt
from datablame.models.likelihood import divergence, negative_log_likelihood
from datablame.models.pair import stop_tokens
from datablame.models.tokenizer import vocabulary_of
from datablame.patch.check_rows import drift_outputs
from datablame.patch.plan import Output
from datablame.patch.worker import WorkerState
from datablame.surface.draw import SampleSpec, draw


def side_checks(state: WorkerState, model: Any, seed: int, outputs: Sequence[Output]) -> dict[str, Any]:
    """One model's side checks, made while it is in memory: answers to harmless prompts are labelled later.

    Perplexity is exp of `nll`, the mean over response tokens of the clean documents (of a pair: the chosen answer).
    `kl` is KL(model || before) in nats per token on the given outputs, their stop tokens' places included, between the
    models' full next-token distributions: whatever the sampler truncates, temperature 1. A value that is not finite is
    None.
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
