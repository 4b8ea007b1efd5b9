"""Gradients along a training as plain loops: TracIn over checkpoints, LoRA's factors by autograd, a step of Adam."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from tests.oracles.gradients import naive_gradient
from torch import Tensor

from datablame.models.chat import Encoded, answers

Factors = Mapping[str, tuple[Tensor, Tensor]]


def naive_tracin(
    models: Sequence[Any],
    learning_rates: Sequence[float],
    document: Encoded,
    queries: Sequence[Encoded],
    blocks: Sequence[int],
) -> float:
    """The mean over queries of sum_t eta_t <g_t(d), g_t(q)> / sqrt(sum_t eta_t |g_t(q)|^2)."""
    scores = []
    for query in queries:
        dot = square = 0.0
        for model, rate in zip(models, learning_rates, strict=True):
            gradient = naive_gradient(model, query, blocks)[0]
            dot += rate * float(naive_gradient(model, document, blocks)[0] @ gradient)
            square += rate * float(gradient @ gradient)
        scores.append(dot / math.sqrt(square))
    return sum(scores) / len(scores)


def naive_loss(model: Any, example: Any, factors: Factors, scale: float) -> Tensor:
    """Mean NLL of the response, of a pair chosen minus rejected, where each named weight is W + scale B A."""
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in factors}
    changed = {f"{name}.weight": weights[f"{name}.weight"] + scale * b @ a for name, (a, b) in factors.items()}
    losses = []
    for answer in answers(example):
        given = {"input_ids": torch.tensor([answer.ids]), "use_cache": False}
        logits = torch.func.functional_call(model, changed, (), given).logits[0].float()
        targets = torch.tensor(answer.ids[answer.prompt_tokens :])
        losses.append(F.cross_entropy(logits[answer.prompt_tokens - 1 : -1], targets))
    return losses[0] if len(losses) == 1 else losses[0] - losses[1]


def naive_lora_gradient(model: Any, example: Any, factors: Factors, scale: float) -> list[Tensor]:
    """The loss's gradient with respect to every A and B, in turn."""
    leaves = {name: tuple(each.detach().clone().requires_grad_() for each in pair) for name, pair in factors.items()}
    loss = naive_loss(model, example, leaves, scale)  # type: ignore[arg-type]
    flat = [each for pair in leaves.values() for each in pair]
    return [each.double() for each in torch.autograd.grad(loss, flat)]


def naive_adam_step(
    gradient: Tensor, first: Tensor, second: Tensor, steps: int, betas: tuple[float, float], epsilon: float
) -> Tensor:
    """What torch's Adam takes away at learning rate 1, in its state after so many steps."""
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=betas, eps=epsilon)
    optimizer.state[weight] = {
        "step": torch.tensor(float(steps)),
        "exp_avg": first.double().clone(),
        "exp_avg_sq": second.double().clone(),
    }
    weight.grad = gradient
    optimizer.step()
    return -weight.detach()
