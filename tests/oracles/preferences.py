"""Preference pairs as naive loops: one answer at a time, full logits, autograd with respect to the weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from tests.oracles.gradients import block_weights, gradient_of, mean_nll, naive_gradient
from torch import Tensor

from datablame.models.chat import Encoded, Preference


def naive_pair_gradient(model: Any, pair: Preference, blocks: Sequence[int]) -> tuple[Tensor, float]:
    """The gradient of NLL(chosen) - NLL(rejected), each a mean over the answer's tokens, and that difference."""
    (up, chosen), (down, rejected) = (naive_gradient(model, answer, blocks) for answer in (pair.chosen, pair.rejected))
    return up - down, chosen - rejected


def naive_mean_hidden(model: Any, answer: Encoded, layer: int) -> Tensor:
    """The mean hidden state of one row."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([answer.ids]), output_hidden_states=True).hidden_states
    mean: Tensor = states[layer][0].mean(0)
    return mean


def naive_log_ratio(model: Any, pair: Preference) -> float:
    """Mean log-probability of the chosen answer's tokens less that of the rejected one's, token by token."""
    means = []
    for answer in (pair.chosen, pair.rejected):
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([answer.ids])).logits[0].double().log_softmax(-1)
        places = range(answer.prompt_tokens, len(answer.ids))
        means.append(sum(float(log_p[place - 1, answer.ids[place]]) for place in places) / len(places))
    return means[0] - means[1]


def naive_preference_loss(model: Any, reference: Any, pairs: Sequence[Preference], beta: float) -> float:
    """Length-normalised DPO as its formula says, pair by pair."""
    margins = [beta * (naive_log_ratio(model, pair) - naive_log_ratio(reference, pair)) for pair in pairs]
    return sum(math.log(1 + math.exp(-margin)) for margin in margins) / len(pairs)


def naive_dpo_gradient(
    model: Any, reference: Any, pair: Preference, beta: float, blocks: Sequence[int]
) -> tuple[Tensor, float]:
    """The gradient of -log sigmoid(beta (r - r_reference)) by autograd through the loss as it stands, and the loss."""

    def loss() -> Tensor:
        ratio = mean_nll(model, pair.rejected) - mean_nll(model, pair.chosen)
        return -F.logsigmoid(beta * (ratio - naive_log_ratio(reference, pair)))

    return gradient_of(loss, block_weights(model, blocks))
