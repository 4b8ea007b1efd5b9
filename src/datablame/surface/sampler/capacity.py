"""How many rows a graphics card holds at once, from its free memory and what one row takes."""

import torch

from datablame.surface.sampler.prefill import Chunk

_SHARE = 0.8
"""Of the free memory; the rest is for a step's intermediate results and lost between blocks."""
_LOGIT_COPIES = 3
"""The head's output, its slice of the last token, and the part of a sort that truncation asks for."""


def row_bytes(chunk: Chunk, columns: int) -> int:
    """What one row takes of a model that read the chunk: keys and values of every column, and its logits."""
    logits = chunk.logits[0].numel() * chunk.logits.element_size()
    return chunk.token_bytes * columns + _LOGIT_COPIES * logits


def rows_that_fit(bytes_a_row: int, free: int, most: int) -> int:
    """At most `most` rows; fewer are a power of two, so that a little more or less free memory changes nothing."""
    fit = int(_SHARE * free) // bytes_a_row
    return most if fit >= most else 1 << max(0, fit.bit_length() - 1)


def free_bytes_of(device: torch.device) -> int | None:
    """Memory of the card that is free or that torch holds unused; None on a device that is no card.

    On a CPU other processes come and go: there the number of rows is the study's alone.
    """
    if device.type != "cuda":
        return None
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))
