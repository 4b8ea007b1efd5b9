"""Training that depends on its arguments alone, in portions that fit in memory, scaled where weights are float16."""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.errors import PhaseError
from datablame.models.blocks import Trunk
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import ran_out_of_memory
from datablame.models.likelihood import response_nll, response_positions

BETAS = (0.9, 0.95)
FINAL_SHARE = 0.05
BATCHES_SORTED_TOGETHER = 16
_CLIP_OFFSET = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""
_FLOAT16_SCALE = 2.0**14
_SHRINK = 4.0

_logger = logging.getLogger(__name__)

OnStep = Callable[[int, torch.optim.Optimizer], None]
"""Hears the number of each step, from 0, once it is done, and the optimiser as it is then."""
Losses = Callable[[Sequence[Any]], Float[Tensor, "*models"]]
"""Each model's mean loss over response tokens (`Encoded`) or `Preference` pairs; n models' examples are n-tuples."""


class DoesNotFit(PhaseError):
    """A single document does not fit in memory."""


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

    An epoch is cut into runs of 16 batches, each sorted by length; then the batches are shuffled.
    """
    if not lengths:
        raise ValueError("there is nothing to train on")
    random = np.random.Generator(np.random.Philox(key=key))
    run = recipe.batch * BATCHES_SORTED_TOGETHER
    order: list[list[int]] = []
    while len(order) < recipe.steps:
        shuffled = random.permutation(len(lengths)).tolist()
        runs = (
            sorted(shuffled[start : start + run], key=lengths.__getitem__) for start in range(0, len(shuffled), run)
        )
        batches = [each[i : i + recipe.batch] for each in runs for i in range(0, len(each), recipe.batch)]
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
    on_step: OnStep | None = None,
) -> list[float]:
    """Minimise the response tokens' mean NLL (nats); every step's loss."""

    def losses_of(batch: Sequence[Encoded]) -> Tensor:
        return response_losses(model, batch)

    return [loss for (loss,) in minimise(model, losses_of, examples, order, recipe, on_step=on_step)]


def minimise(
    model: nn.Module,
    losses_of: Losses,
    examples: Sequence[Any],
    order: Sequence[Sequence[int]],
    recipe: Recipe,
    n: int | None = None,
    on_step: OnStep | None = None,
) -> list[list[float]]:
    """Minimise the means that `losses_of` gives of each step's examples; losses by step and model.

    AdamW (Loshchilov and Hutter 2019) over the parameters that require gradients; vectors are not decayed. Portions of
    a batch that do not fit in memory are halved; the gradient stays the whole batch's. With `n` that many models are
    trained at once, whose parameters stand along the first axis; none may have an influence on another's loss. Their
    gradients are clipped for each alone, and AdamW works by entry, so that each learns what it learns alone.
    Raises `DoesNotFit` where a single document (one of each model) does not fit in memory.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, fused=True)
    losses: list[list[float]] = []
    # Gradients below 6e-8 would be zero in the activations of float16.
    half = any(parameter.dtype is torch.float16 for parameter in model.parameters())
    portion = _Portion(recipe.micro_batch or max(map(len, order), default=1), _FLOAT16_SCALE if half else 1.0)
    # No dropout may draw from the global generator.
    model.eval()
    for step, positions in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(step, recipe)
        batch = [examples[position] for position in positions]
        losses.append(_accumulated(losses_of, batch, optimizer, portion))
        if n is None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        else:
            _clip_each(parameters, recipe.clip, n)
        optimizer.step()
        if on_step is not None:
            on_step(step, optimizer)
    optimizer.zero_grad()
    return losses


def response_losses(
    model: nn.Module, examples: Sequence[Encoded], n: int = 1, trunk: Trunk | None = None
) -> Float[Tensor, " models"]:
    """The mean NLL (nats) over response tokens of each of `n` consecutive runs of examples, as long as one another."""
    positions = response_positions(examples, next(model.parameters()).device)
    with contextlib.nullcontext() if trunk is None else trunk.cut_off():
        nll = response_nll(model, positions, None if trunk is None else trunk.padded(examples))
    run = len(examples) // n
    counts = [sum(map(_terms, examples[start : start + run])) for start in range(0, len(examples), run)]
    return torch.stack([losses.mean() for losses in nll.split(counts)])


def _clip_each(parameters: Sequence[nn.Parameter], most: float, n: int) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    shares = (most / (torch.linalg.vector_norm(norms, dim=0) + _CLIP_OFFSET)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(shares.view(n, *[1] * (gradient.ndim - 1)))


@dataclass
class _Portion:
    """How many positions pass through the model at once, and by what power of two the loss is multiplied."""

    positions: int
    scale: float


def _accumulated(
    losses_of: Losses, examples: Sequence[Any], optimizer: torch.optim.Optimizer, portion: _Portion
) -> list[float]:
    """Leave the gradient of `losses_of(examples)` in the parameters; a portion that fails is made smaller for good."""
    while True:
        optimizer.zero_grad()
        try:
            losses = _backward(losses_of, examples, portion)
            finite = portion.scale == 1 or _unscaled(optimizer, portion.scale)
            if finite or portion.scale < _SHRINK or not all(map(math.isfinite, losses)):
                return losses
            portion.scale /= _SHRINK
            _logger.info("a gradient overflowed float16; the loss is scaled by %g from here on", portion.scale)
            continue
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
        size = min(portion.positions, len(examples))
        if size == 1:
            longest = max(len(answer.ids) for side in map(_side, examples) for each in side for answer in answers(each))
            raise DoesNotFit(
                f"training on a document of {longest} tokens does not fit in memory; lower attribute.max_tokens or "
                "patch.rank"
            )
        portion.positions = size // 2
        optimizer.zero_grad()
        torch.cuda.empty_cache()
        at_once = portion.positions * len(_side(examples[0]))
        _logger.warning("memory ran out; training now takes %d documents at once, with the same gradient", at_once)


def _backward(losses_of: Losses, examples: Sequence[Any], portion: _Portion) -> list[float]:
    """Portions count by their share of each model's tokens or pairs: their sum is the whole batch's, up to rounding."""
    terms = np.array([[_terms(document) for document in _side(example)] for example in examples])
    every, totals = terms.sum(0), np.zeros(terms.shape[1])
    for start in range(0, len(examples), portion.positions):
        part = slice(start, start + portion.positions)
        losses = losses_of(examples[part]).reshape(-1)
        share = terms[part].sum(0) / every
        (losses * losses.new_tensor(share * portion.scale)).sum().backward()
        totals += share * np.array(losses.tolist())
    return [float(total) for total in totals]


def _side(example: Any) -> tuple[Any, ...]:
    """One document for each model."""
    return (example,) if isinstance(example, Encoded | Preference) else example


def _terms(document: Encoded | Preference) -> int:
    """How many terms it has in a mean loss."""
    return 1 if isinstance(document, Preference) else len(document.ids) - document.prompt_tokens


def _unscaled(optimizer: torch.optim.Optimizer, scale: float) -> bool:
    """Divide the gradients by the scale, which is exact, and say whether all are finite."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        gradient.div_(scale)
    return all(bool(gradient.isfinite().all()) for gradient in gradients)
