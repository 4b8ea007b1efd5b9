"""Training that depends on its arguments alone: the order of data comes from a key, no dropout, no global generator."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.accumulate import E, accumulated, first_portion
from datablame.models.chat import Encoded
from datablame.models.head import response_nll, response_places
from datablame.models.trunk import Trunk

BETAS = (0.9, 0.95)
FINAL_SHARE = 0.05
BATCHES_SORTED_TOGETHER = 16
_CLIP_OFFSET = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""


class Recipe(NamedTuple):
    """How long, how fast and in what portions to train."""

    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    micro_batch: int | None = None
    """Documents that pass through the model at once; none: the whole batch."""


def data_order(lengths: Sequence[int], recipe: Recipe, key: int) -> list[list[int]]:
    """The positions that each step trains on: shuffled epochs, neighbours in length batched together.

    An epoch is cut into runs of 16 batches, each run sorted by length, then the batches are shuffled; every position
    is seen once before any is seen twice. Interventions that put another document in a position keep the order.
    """
    if not lengths:
        raise ValueError("there is nothing to train on")
    random = np.random.Generator(np.random.Philox(key=key))
    run = recipe.batch * BATCHES_SORTED_TOGETHER
    order: list[list[int]] = []
    while len(order) < recipe.steps:
        shuffled = random.permutation(len(lengths)).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), run):
            by_length = sorted(shuffled[start : start + run], key=lambda position: lengths[position])
            batches += [by_length[i : i + recipe.batch] for i in range(0, len(by_length), recipe.batch)]
        order += [batches[i] for i in random.permutation(len(batches)).tolist()]
    return order[: recipe.steps]


def learning_rate_share(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine from 1 to 5 %."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return warm * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def train(
    model: nn.Module,
    examples: Sequence[Encoded],
    order: Sequence[Sequence[int]],
    recipe: Recipe,
    on_step: Callable[[int, float], None] | None = None,
    trunk: Trunk | None = None,
) -> list[float]:
    """Minimise the mean negative log-likelihood of the response tokens (nats); returns every step's loss.

    With a `trunk`, whose blocks must be frozen, only the blocks above it run.
    """
    return minimise(model, lambda batch: response_loss(model, batch, trunk), examples, order, recipe, on_step)


def minimise(
    model: nn.Module,
    loss_of: Callable[[Sequence[E]], Float[Tensor, ""]],
    examples: Sequence[E],
    order: Sequence[Sequence[int]],
    recipe: Recipe,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Minimise the mean that `loss_of` gives of each step's examples; returns every step's loss.

    AdamW (Loshchilov and Hutter 2019) over the parameters that require gradients; vectors are not decayed. The model
    stays in evaluation mode, so that no dropout draws from the global generator. Portions of a batch that do not fit in
    memory are halved; the gradient stays the whole batch's.
    """

    def clip(parameters: list[nn.Parameter]) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)

    return [loss for (loss,) in _steps(model, loss_of, examples, order, recipe, clip, on_step)]


def minimise_each(
    model: nn.Module,
    losses_of: Callable[[Sequence[E]], Float[Tensor, " models"]],
    examples: Sequence[E],
    order: Sequence[Sequence[int]],
    recipe: Recipe,
    n: int,
) -> list[list[float]]:
    """As `minimise` for `n` models at once, whose parameters stand along the first axis; losses by step and model.

    `losses_of` gives the mean of each model, on which no parameter of another has an influence. Gradients are clipped
    for each model alone, and AdamW works by entry, so that each learns what it learns alone.
    """

    def clip(parameters: list[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        shares = (recipe.clip / (torch.linalg.vector_norm(norms, dim=0) + _CLIP_OFFSET)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(shares.view(n, *[1] * (gradient.ndim - 1)))

    return _steps(model, losses_of, examples, order, recipe, clip)


def _steps(
    model: nn.Module,
    losses_of: Callable[[Sequence[E]], Float[Tensor, "*models"]],
    examples: Sequence[E],
    order: Sequence[Sequence[int]],
    recipe: Recipe,
    clip: Callable[[list[nn.Parameter]], None],
    on_step: Callable[[int, float], None] | None = None,
) -> list[list[float]]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=recipe.learning_rate, betas=BETAS, fused=True
    )
    losses: list[list[float]] = []
    portion = first_portion(model, recipe.micro_batch or max(map(len, order), default=1))
    model.eval()
    for step, positions in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(step, recipe)
        batch = [examples[position] for position in positions]
        step_losses, portion = accumulated(losses_of, batch, parameters, portion)
        clip(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(step_losses)
        if on_step is not None:
            on_step(step, step_losses[0])
    return losses


def response_loss(model: nn.Module, examples: Sequence[Encoded], trunk: Trunk | None = None) -> Float[Tensor, ""]:
    """Mean NLL (nats) over all response tokens of the batch.

    The output head is given only the hidden states that predict a response token; whatever the model does to its logits
    afterwards (scaling, soft caps) still happens.
    """
    return response_losses(model, examples, 1, trunk)[0]


def response_losses(
    model: nn.Module, examples: Sequence[Encoded], n: int, trunk: Trunk | None = None
) -> Float[Tensor, " models"]:
    """The mean NLL (nats) over response tokens of each of `n` consecutive runs of examples, as long as one another."""
    places = response_places(examples, next(model.parameters()).device)
    if trunk is None:
        nll = response_nll(model, lambda: model(input_ids=places.ids, use_cache=False), places)
    else:
        with trunk.cut_off():
            states = trunk.padded(examples)
            nll = response_nll(model, lambda: model(inputs_embeds=states, use_cache=False), places)
    run = len(examples) // n
    counts = [
        sum(len(example.ids) - example.prompt_tokens for example in examples[start : start + run])
        for start in range(0, len(examples), run)
    ]
    return torch.stack([losses.mean() for losses in nll.split(counts)])
