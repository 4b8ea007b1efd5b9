"""Key-value caches for many rows that share a few prompts: room made once, finished rows closed up in place."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["RoomyLayer", "closing_up", "expanded", "keep_rows"]


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values in buffers that are never reallocated while tokens are added or rows leave."""

    def __init__(
        self,
        keys: Float[Tensor, "prompts heads tokens width"],
        values: Float[Tensor, "prompts heads tokens width"],
        rows: Int[Tensor, " rows"],
        room: int,
    ) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.rows, self.tokens = len(rows), keys.shape[-2]
        self.keys, self.values = _roomy(keys, rows, room), _roomy(values, rows, room)

    def update(
        self,
        key_states: Float[Tensor, "rows heads new width"],
        value_states: Float[Tensor, "rows heads new width"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "rows heads tokens width"], Float[Tensor, "rows heads tokens width"]]:
        """Write the new tokens behind the old ones and return everything so far, without a copy."""
        end = self.tokens + key_states.shape[-2]
        keys, values = self.keys[: self.rows, :, :end], self.values[: self.rows, :, :end]
        keys[:, :, self.tokens :] = key_states
        values[:, :, self.tokens :] = value_states
        self.tokens = end
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return self.tokens

    def close_up(self, kept: Int[Tensor, " kept"], holes: Int[Tensor, " holes"]) -> None:
        """Move rows from the end into the holes that finished rows leave."""
        movers = kept[holes]
        for buffer in (self.keys, self.values):
            buffer[holes, :, : self.tokens] = buffer[movers, :, : self.tokens]
        self.rows = len(kept)


def expanded(cache: DynamicCache, rows: Int[Tensor, " rows"], room: int) -> DynamicCache:
    """The prefilled cache with prompt `rows[i]` in row i and space for `room` tokens in all."""
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = RoomyLayer(layer.keys, layer.values, rows, room)
        else:
            layer.batch_select_indices(rows)
    return cache


def closing_up(alive: Tensor) -> tuple[Int[Tensor, " kept"], Int[Tensor, " holes"]]:
    """Where each kept row comes from, as few as possible moved, and which rows are so filled."""
    survivors = alive.nonzero().squeeze(1)
    count = len(survivors)
    kept = torch.arange(count, device=alive.device)
    holes = (~alive[:count]).nonzero().squeeze(1)
    kept[holes] = survivors[count - len(holes) :]
    return kept, holes


def keep_rows(cache: DynamicCache, kept: Int[Tensor, " kept"], holes: Int[Tensor, " holes"]) -> None:
    """Drop every row that `closing_up` did not keep."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.close_up(kept, holes)
        else:
            layer.batch_select_indices(kept)


def _roomy(
    states: Float[Tensor, "prompts heads tokens width"], rows: Int[Tensor, " rows"], room: int
) -> Float[Tensor, "rows heads room width"]:
    _, heads, tokens, width = states.shape
    buffer = states.new_empty(len(rows), heads, max(room, tokens), width)
    buffer[:, :, :tokens] = states[rows]
    return buffer
