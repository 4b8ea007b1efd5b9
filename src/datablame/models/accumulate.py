"""The gradient of one step: in portions that fit in memory, scaled so that float16 neither loses nor overflows it."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.errors import PhaseError
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import ran_out_of_memory

E = TypeVar("E", Encoded, Preference, tuple[Encoded, ...], tuple[Preference, ...])
"""A document, or those that several models take at one position."""

_logger = logging.getLogger(__name__)

_FLOAT16_SCALE = 2.0**14
_SHRINK = 4.0


class DoesNotFit(PhaseError):
    """A single document does not fit in memory."""


class Portion(NamedTuple):
    """How many positions pass through the model at once, and by what power of two the loss is multiplied."""

    positions: int
    scale: float


def first_portion(model: nn.Module, positions: int) -> Portion:
    """Scaled where weights are float16: gradients below 6e-8 would be zero in its activations."""
    half = any(parameter.dtype is torch.float16 for parameter in model.parameters())
    return Portion(positions, _FLOAT16_SCALE if half else 1.0)


def accumulated(
    loss_of: Callable[[Sequence[E]], Float[Tensor, "*models"]],
    examples: Sequence[E],
    parameters: Sequence[nn.Parameter],
    portion: Portion,
) -> tuple[list[float], Portion]:
    """Leave the gradient of `loss_of(examples)` in the parameters; returns the losses and the portion that worked.

    `loss_of` is a mean over response tokens, or over preference pairs, for each of the models that are trained at once:
    portions count by how many of them they have, so that their sum is the whole batch's gradient up to rounding. A
    portion that does not fit in memory is halved, a scale that overflows is lowered, and the step is done again from
    its beginning.

    Raises:
        DoesNotFit: a single document (one of each model) does not fit in memory.
    """
    while True:
        _forget(parameters)
        try:
            losses = _backward(loss_of, examples, portion)
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
        documents_at_once = size // 2 * len(_documents(examples[0]))
        _logger.warning(
            "memory ran out; training now takes %d documents at once, with the same gradient", documents_at_once
        )


def _backward(
    loss_of: Callable[[Sequence[E]], Float[Tensor, "*models"]], examples: Sequence[E], portion: Portion
) -> list[float]:
    if portion.positions >= len(examples):
        losses = loss_of(examples).reshape(-1)
        (losses if portion.scale == 1 else losses * portion.scale).sum().backward()
        return [float(loss) for loss in losses.detach()]
    every = _counts(examples)
    totals = [0.0] * len(every)
    for start in range(0, len(examples), portion.positions):
        part = examples[start : start + portion.positions]
        shares = [some / total for some, total in zip(_counts(part), every, strict=True)]
        losses = loss_of(part).reshape(-1)
        (losses * losses.new_tensor([share * portion.scale for share in shares])).sum().backward()
        totals = [
            total + share * float(loss) for total, share, loss in zip(totals, shares, losses.detach(), strict=True)
        ]
    return totals


def _counts(examples: Sequence[E]) -> list[int]:
    """For each model: response tokens, or pairs."""
    columns = zip(*(_documents(example) for example in examples), strict=True)
    return [sum(map(_count, column)) for column in columns]


def _documents(example: E) -> tuple[Any, ...]:
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
