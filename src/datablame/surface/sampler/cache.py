"""Key-value caches whose rows come and go: room made once, a ring of columns that all rows write together."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class Ring:
    """Which column is written next and which columns are in use, the same for every layer of a model.

    All rows write a new token into the same column, and go on at column 0 after the last. A row that joins has its
    prompt before that column. A mask says which columns are a row's own: keys carry their position, so that the order
    of the columns has no meaning.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.column = self.span = 0

    def restart(self, column: int) -> None:
        """An empty batch begins, its longest prompt ending before `column`."""
        self.column, self.span = column % self.columns, column

    def advance(self) -> int:
        """Claim the next column for every row."""
        written = self.column
        self.span = max(self.span, written + 1)
        self.column = (written + 1) % self.columns
        return written

    def behind(self, tokens: int) -> list[tuple[slice, slice]]:
        """Where `tokens` states go that end before the next column: slices of them and columns, cut at the wrap."""
        start = self.column - tokens
        if start >= 0:
            return [(slice(0, tokens), slice(start, self.column))]
        # The next column is 0 after a wrap, or too few columns are written for a long prompt.
        self.span = self.columns
        ends = [(slice(0, -start), slice(self.columns + start, self.columns))]
        return ends if self.column == 0 else [*ends, (slice(-start, tokens), slice(0, self.column))]


class RingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values in buffers that are never reallocated while tokens are added or rows come and go."""

    def __init__(
        self,
        ring: Ring,
        keys: Float[Tensor, "prompts models heads tokens width"],
        values: Float[Tensor, "prompts models heads tokens value_width"],
        rows: int,
    ) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._ring = ring
        # Zeros, for what a mask hides is still multiplied by 0.
        self._buffers = [
            states.new_zeros(rows, states.shape[1], states.shape[2], ring.columns, states.shape[4])
            for states in (keys, values)
        ]
        self.keys, self.values = (buffer.flatten(0, 1) for buffer in self._buffers)

    def update(
        self,
        key_states: Float[Tensor, "rows heads 1 width"],
        value_states: Float[Tensor, "rows heads 1 value_width"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "rows heads tokens width"], Float[Tensor, "rows heads tokens value_width"]]:
        """Write the new token's states and return all columns in use, without a copy."""
        rows, ring = key_states.shape[0], self._ring
        keys, values = self.keys[:rows], self.values[:rows]
        written = (ring.column - 1) % ring.columns
        keys[:, :, written] = key_states[:, :, 0]
        values[:, :, written] = value_states[:, :, 0]
        return keys[:, :, : ring.span], values[:, :, : ring.span]

    def get_seq_length(self) -> int:
        """Columns in use before the token that is being read."""
        return self._ring.span - 1

    def add_rows(
        self,
        rows: Int[Tensor, " new"],
        keys: Float[Tensor, "prompts models heads tokens width"],
        values: Float[Tensor, "prompts models heads tokens value_width"],
        prompts: Int[Tensor, " new"],
        slices: list[tuple[slice, slice]],
    ) -> None:
        """Copy a prompt's states into each of the rows."""
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            for part, columns in slices:
                buffer[rows, :, :, columns] = states[:, :, :, part][prompts]

    def move_rows(self, sources: Int[Tensor, " holes"], holes: Int[Tensor, " holes"]) -> None:
        """Move rows from the end into the holes that finished rows leave."""
        for buffer in self._buffers:
            buffer[holes, :, :, : self._ring.span] = buffer[sources, :, :, : self._ring.span]


def compaction(alive: Bool[Tensor, " rows"]) -> tuple[Int[Tensor, " alive"], Int[Tensor, " holes"]]:
    """Which row each row that stays comes from, as few as possible moved, and which rows are so filled."""
    survivors = alive.nonzero().squeeze(1)
    count = len(survivors)
    sources = torch.arange(count, device=alive.device)
    holes = (~alive[:count]).nonzero().squeeze(1)
    sources[holes] = survivors[count - len(holes) :]
    return sources, holes
