"""Likelihood and divergence as naive loops: one token at a time, no batch, no padding, all arithmetic in float64."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from datablame.models.chat import Encoded


def naive_nll(model: Any, examples: Sequence[Encoded], vocabulary_size: int) -> float:
    """The mean over response tokens of -log p(token | everything before it), in nats."""
    terms = [
        -_log_probabilities(model, example.ids[:place], vocabulary_size)[example.ids[place]]
        for example in examples
        for place in range(example.prompt_tokens, len(example.ids))
    ]
    return math.fsum(terms) / len(terms)


def naive_divergence(model: Any, other: Any, contexts: Sequence[Sequence[int]], vocabulary_size: int) -> float:
    """The mean over contexts of the sum over the vocabulary of p (log p - log q), in nats."""
    terms = []
    for context in contexts:
        log_p, log_q = (_log_probabilities(each, context, vocabulary_size) for each in (model, other))
        terms.append(math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
    return math.fsum(terms) / len(terms)


@torch.no_grad()
def _log_probabilities(model: Any, context: Sequence[int], vocabulary_size: int) -> list[float]:
    logits = model(input_ids=torch.tensor([list(context)]), use_cache=False).logits[0, -1]
    numbers: list[float] = logits[:vocabulary_size].double().tolist()
    largest = max(numbers)
    total = largest + math.log(math.fsum(math.exp(number - largest) for number in numbers))
    return [number - total for number in numbers]
