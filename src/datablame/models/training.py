"""Training that depends on its arguments alone: the order of data comes from a key, no dropout, no global generator.

The gradient of a step comes in portions that fit in memory, scaled so that float16 neither loses nor overflows it.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.errors import PhaseError
from datablame.models.blocks import Trunk
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import ran_out_of_memory
from datablame.models.likelihood import response_nll, response_places

BETAS = (0.9, 0.95)
FINAL_SHARE = 0.05
BATCHES_SORTED_TOGETHER = 16
_CLIP_OFFSET = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""
_FLOAT16_SCALE = 2.0**14
_SHRINK = 4.0

_logger = logging.getLogger(__name__)

Losses = Callable[[Sequence[Any]], Float[Tensor, "*models"]]
"""Of examples the mean loss of each model: over response tokens of documents (`Encoded`), or over `Preference` pairs.

Where several models are trained at once an example is a tuple, of one document for each of them.
"""


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
    """Minimise the response tokens' mean NLL (nats), above a frozen `trunk` if given; every step's loss."""
    losses = minimise(
        model, lambda batch: response_losses(model, batch, 1, trunk), examples, order, recipe, on_step=on_step
    )
    return [loss for (loss,) in losses]


def minimise(
    model: nn.Module,
    losses_of: Losses,
    examples: Sequence[Any],
    order: Sequence[Sequence[int]],
    recipe: Recipe,
    n: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[list[float]]:
    """Minimise the means that `losses_of` gives of each step's examples; losses by step and model.

    AdamW (Loshchilov and Hutter 2019) over the parameters that require gradients; vectors are not decayed. The model
    stays in evaluation mode, so that no dropout draws from the global generator. Portions of a batch that do not fit in
    memory are halved; the gradient stays the whole batch's.

    With `n` that many models are trained at once, whose parameters stand along the first axis; none may have an
    influence on another's loss. Gradients are clipped for each alone, and AdamW works by entry, so that each learns
    what it learns alone. Raises `DoesNotFit` where a single document (one of each model) does not fit in memory.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=recipe.learning_rate, betas=BETAS, fused=True
    )
    losses: list[list[float]] = []
    # Gradients below 6e-8 would be zero in the activations of float16.
    half = any(parameter.dtype is torch.float16 for parameter in model.parameters())
    portion = _Portion(recipe.micro_batch or max(map(len, order), default=1), _FLOAT16_SCALE if half else 1.0)
    model.eval()
    for step, positions in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(step, recipe)
        batch = [examples[position] for position in positions]
        step_losses, portion = _accumulated(losses_of, batch, parameters, portion)
        if n is None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        else:
            _clip_each(parameters, recipe.clip, n)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(step_losses)
        if on_step is not None:
            on_step(step, step_losses[0])
    return losses


def response_losses(
    model: nn.Module, examples: Sequence[Encoded], n: int = 1, trunk: Trunk | None = None
) -> Float[Tensor, " models"]:
    """The mean NLL (nats) over response tokens of each of `n` consecutive runs of examples, as long as one another.

    The output head is given only the hidden states that predict a response token; whatever the model does to its logits
    afterwards (scaling, soft caps) still happens.
    """
    places = response_places(examples, next(model.parameters()).device)
    if trunk is None:
        nll = response_nll(model, places)
    else:
        with trunk.cut_off():
            nll = response_nll(model, places, trunk.padded(examples))
    run = len(examples) // n
    counts = [sum(map(_count, examples[start : start + run])) for start in range(0, len(examples), run)]
    return torch.stack([losses.mean() for losses in nll.split(counts)])


def _clip_each(parameters: Sequence[nn.Parameter], most: float, n: int) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    shares = (most / (torch.linalg.vector_norm(norms, dim=0) + _CLIP_OFFSET)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(shares.view(n, *[1] * (gradient.ndim - 1)))


class _Portion(NamedTuple):
    """How many positions pass through the model at once, and by what power of two the loss is multiplied."""

    positions: int
    scale: float


def _accumulated(
    losses_of: Losses, examples: Sequence[Any], parameters: Sequence[nn.Parameter], portion: _Portion
) -> tuple[list[float], _Portion]:
    """Leave the gradient of `losses_of(examples)` in the parameters; returns the losses and the portion that worked.

    A portion that does not fit in memory is halved, a scale that overflows is lowered, and the step is done again from
    its beginning.
    """
    while True:
        _forget(parameters)
        try:
            losses = _backward(losses_of, examples, portion)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
        else:
            if portion.scale == 1:
                return losses, portion
            finite = all(map(math.isfinite, losses))
            if _unscaled(parameters, portion.scale) or not finite or portion.scale < _SHRINK:
                return losses, portion
            portion = portion._replace(scale=portion.scale / _SHRINK)
            _logger.info("a gradient overflowed float16; the loss is scaled by %g from here on", portion.scale)
            continue
        size = min(portion.positions, len(examples))
        if size == 1:
            documents = (document for example in examples for document in _documents(example))
            longest = max(len(answer.ids) for document in documents for answer in answers(document))
            raise DoesNotFit(
                f"training on a document of {longest} tokens does not fit in memory; lower attribute.max_tokens or "
                "patch.rank"
            )
        portion = portion._replace(positions=size // 2)
        _forget(parameters)
        torch.cuda.empty_cache()
        at_once = size // 2 * len(_documents(examples[0]))
        _logger.warning("memory ran out; training now takes %d documents at once, with the same gradient", at_once)


def _backward(losses_of: Losses, examples: Sequence[Any], portion: _Portion) -> list[float]:
    """Portions count by their share of each model's tokens or pairs: their sum is the whole batch's, up to rounding."""
    every = _counts(examples)
    totals = [0.0] * len(every)
    for start in range(0, len(examples), portion.positions):
        part = examples[start : start + portion.positions]
        shares = [some / total for some, total in zip(_counts(part), every, strict=True)]
        losses = losses_of(part).reshape(-1)
        (losses * losses.new_tensor([share * portion.scale for share in shares])).sum().backward()
        totals = [
            total + share * float(loss) for total, share, loss in zip(totals, shares, losses.detach(), strict=True)
        ]
    return totals


def _counts(examples: Sequence[Any]) -> list[int]:
    """For each model: response tokens, or pairs."""
    return [sum(map(_count, column)) for column in zip(*map(_documents, examples), strict=True)]


def _documents(example: Any) -> tuple[Any, ...]:
    """One for each model."""
    return (example,) if isinstance(example, Encoded | Preference) else example


def _count(document: Encoded | Preference) -> int:
    return 1 if isinstance(document, Preference) else len(document.ids) - document.prompt_tokens


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _unscaled(parameters: Sequence[nn.Parameter], scale: float) -> bool:
    """Divide the gradients by the scale, which is exact, and say whether all are finite."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        gradient.div_(scale)
    return all(bool(gradient.isfinite().all()) for gradient in gradients)
