"""Where a decoder's blocks are, and which of them are in the middle."""

from typing import Any

from torch import nn


def decoder_blocks(model: Any) -> list[nn.Module]:
    """The decoder blocks from input to output: the longest list of modules of one class inside the model."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    alike = [blocks for blocks in lists if len({type(block) for block in blocks}) == 1]
    if not alike:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks")
    return max(alike, key=len)


def middle_blocks(n: int) -> list[int]:
    """The blocks 8 to 12 of 16, the same fractions of `n` otherwise."""
    return [block for block in range(n) if 8 / 16 <= block / n <= 12 / 16]


def activation_layer(n: int) -> int:
    """The index into the hidden states (0 is the embedding) of layer 10 of 16, the same fraction of `n` otherwise."""
    return round(10 / 16 * n)
