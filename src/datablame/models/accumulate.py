"""The gradient of one step: in portions that fit in memory, scaled so that float16 neither loses nor overflows it."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.errors import PhaseError
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import ran_out_of_memory

__all__ = ["E", "Portion", "accumulated", "first_portion"]

E = TypeVar("E", Encoded, Preference)

_logger = logging.getLogger(__name__)

_FLOAT16_SCALE = 2.0**14
_SHRINK = 4.0


class Portion(NamedTuple):
    """How many documents pass through the model at once, and by what power of two the loss is multiplied."""

    documents: int
    scale: float


def first_portion(model: nn.Module, documents: int) -> Portion:
    """Scaled where weights are float16: gradients below 6e-8 would be zero in its activations."""
    half = any(parameter.dtype is torch.float16 for parameter in model.parameters())
    return Portion(documents, _FLOAT16_SCALE if half else 1.0)


def accumulated(
    loss_of: Callable[[Sequence[E]], Float[Tensor, ""]],
    examples: Sequence[E],
    parameters: Sequence[nn.Parameter],
    portion: Portion,
) -> tuple[float, Portion]:
    """Leave the gradient of `loss_of(examples)` in the parameters; returns the loss and the portion that worked.

    `loss_of` is a mean over response tokens, or over preference pairs: portions count by how many of them they have, so
    that their sum is the whole batch's gradient up to rounding. A portion that does not fit in memory is halved, a
    scale that overflows is lowered, and the step is done again from its beginning.

    Raises:
        PhaseError: a single document does not fit in memory.
    """
    while True:
        _forget(parameters)
        try:
            loss = _backward(loss_of, examples, portion)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
        else:
            if portion.scale == 1:
                return loss, portion
            if _unscaled(parameters, portion.scale) or not math.isfinite(loss) or portion.scale < _SHRINK:
                return loss, portion
            portion = portion._replace(scale=portion.scale / _SHRINK)
            _logger.info("a gradient overflowed float16; the loss is scaled by %g from here on", portion.scale)
            continue
        size = min(portion.documents, len(examples))
        if size == 1:
            longest = max(len(answer.ids) for example in examples for answer in answers(example))
            raise PhaseError(
                f"training on a document of {longest} tokens does not fit in memory; lower attribute.max_tokens or "
                "patch.rank"
            )
        portion = portion._replace(documents=size // 2)
        _forget(parameters)
        torch.cuda.empty_cache()
        _logger.warning("memory ran out; training now takes %d documents at once, with the same gradient", size // 2)


def _backward(loss_of: Callable[[Sequence[E]], Float[Tensor, ""]], examples: Sequence[E], portion: Portion) -> float:
    if portion.documents >= len(examples):
        loss = loss_of(examples)
        (loss if portion.scale == 1 else loss * portion.scale).backward()
        return float(loss.detach())
    every, total = sum(map(_count, examples)), 0.0
    for start in range(0, len(examples), portion.documents):
        part = examples[start : start + portion.documents]
        share = sum(map(_count, part)) / every
        loss = loss_of(part)
        (loss * (share * portion.scale)).backward()
        total += share * float(loss.detach())
    return total


def _count(example: Encoded | Preference) -> int:
    return 1 if isinstance(example, Preference) else len(example.ids) - example.prompt_tokens


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _unscaled(parameters: Sequence[nn.Parameter], scale: float) -> bool:
    """Divide the gradients by the scale, which is exact, and say whether all are finite."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        gradient.div_(scale)
    return all(bool(gradient.isfinite().all()) for gradient in gradients)
