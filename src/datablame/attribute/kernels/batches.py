"""Documents of like length in batches under a token budget that shrinks when memory runs out."""

import logging
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from datablame.errors import PhaseError
from datablame.models.device import ran_out_of_memory

_logger = logging.getLogger(__name__)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices sorted by length; rows times longest row stay within the budget, but a batch has one row at least."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def in_batches(lengths: Sequence[int], batch_tokens: int, work: Callable[[list[int]], None]) -> None:
    """Call `work` on batches that cover every index once; one that does not fit in memory is halved.

    Raises:
        PhaseError: a single document does not fit.
    """
    waiting = length_batches(lengths, batch_tokens)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            work(batch)
            continue
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
        if len(batch) == 1:
            raise PhaseError(
                f"a document of {lengths[batch[0]]} tokens does not fit in memory; lower attribute.max_tokens"
            )
        torch.cuda.empty_cache()
        indices = sorted(index for each in [batch, *waiting] for index in each)
        batch_tokens = max(1, len(batch) * max(lengths[index] for index in batch) // 2)
        _logger.warning("memory ran out; batches of documents now hold at most %d tokens", batch_tokens)
        waiting = [
            [indices[index] for index in smaller]
            for smaller in length_batches([lengths[index] for index in indices], batch_tokens)
        ][::-1]


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "batch tokens"]:
    """Token ids with 0 after the end: under the causal mask no token sees padding, so no attention mask is needed."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
