"""The sampler as a naive loop: one sample at a time, no caches, no batch, bookkeeping in float64."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datablame.seeds import uniforms
from datablame.surface.sampler.sampler import Generation, Request
from datablame.surface.sampler.tokens import Settings

Logits = NDArray[np.float64]


def naive_sample(
    after: Any,
    before: Any,
    requests: Sequence[Request],
    *,
    settings: Settings,
    stop_ids: Sequence[int],
    vocabulary_size: int,
    alphas: Sequence[float] = (),
    log_probabilities: bool = False,
    per_token: bool = False,
) -> list[Generation]:
    """What `datablame.surface.sampler.sampler.sample` promises, said plainly."""
    return [
        _one(after, before, request, settings, set(stop_ids), vocabulary_size, alphas, log_probabilities, per_token)
        for request in requests
    ]


def _one(
    after: Any,
    before: Any,
    request: Request,
    settings: Settings,
    stop_ids: set[int],
    vocabulary_size: int,
    alphas: Sequence[float],
    log_probabilities: bool,
    per_token: bool,
) -> Generation:
    ids, made = list(request.prompt), list[int]()
    uniform = uniforms(request.key, settings.max_new_tokens)
    log_p_after = log_p_before = 0.0
    log_q, triples = [0.0] * len(alphas), list[tuple[float, float, float]]()
    stop: int | None = None
    for step in range(settings.max_new_tokens):
        a, b = (_last_logits(model, ids + made)[:vocabulary_size] for model in (after, before))
        token = _token(a, a + request.alpha * (a - b), float(uniform[step]), settings)
        log_p_after += _log_softmax(a)[token]
        log_p_before += _log_softmax(b)[token]
        log_a, log_b, log_q_own = (_log_softmax(each)[token] for each in (a, b, a + request.alpha * (a - b)))
        triples.append((float(log_a), float(log_b), float(log_q_own)))
        log_q = [total + _log_softmax(a + alpha * (a - b))[token] for total, alpha in zip(log_q, alphas, strict=True)]
        if token in stop_ids:
            stop = token
            break
        made.append(token)
    return Generation(
        token_ids=tuple(made),
        finish_reason="length" if stop is None else "stop",
        stop_id=stop,
        log_p_after=float(log_p_after) if log_probabilities else None,
        log_p_before=float(log_p_before) if log_probabilities else None,
        log_q=tuple(map(float, log_q)) if log_probabilities and settings.untruncated else None,
        token_log_p=tuple(triples) if per_token else None,
    )


def _token(a: Logits, mixed: Logits, uniform: float, settings: Settings) -> int:
    allowed = set(range(len(a)))
    if settings.plausibility:
        p = np.exp(_log_softmax(a))
        allowed = {token for token in allowed if p[token] >= settings.plausibility * p.max()}
    if settings.temperature == 0:
        return max(sorted(allowed), key=lambda token: mixed[token])
    weight = {token: math.exp((mixed[token] - mixed.max()) / settings.temperature) for token in allowed}
    ranked = sorted(weight, key=lambda token: -weight[token])
    if settings.top_k:
        ranked = ranked[: settings.top_k]
    if settings.top_p < 1:
        total, mass, nucleus = sum(weight[token] for token in ranked), 0.0, list[int]()
        for token in ranked:
            nucleus.append(token)
            mass += weight[token] / total
            if mass >= settings.top_p:
                break
        ranked = nucleus
    if settings.min_p:
        ranked = [token for token in ranked if weight[token] >= settings.min_p * weight[ranked[0]]]
    target, reached = uniform * sum(weight[token] for token in ranked), 0.0
    for token in sorted(ranked):
        reached += weight[token]
        if reached > target:
            return token
    return max(ranked)


@torch.no_grad()
def _last_logits(model: Any, ids: Sequence[int]) -> Logits:
    logits: Logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double().numpy()
    return logits


def _log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max()
    result: Logits = shifted - np.log(np.exp(shifted).sum())
    return result
