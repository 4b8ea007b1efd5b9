"""One model over the rows of a batch: prompts join, a token is read for every row, finished rows leave.

The caches are rings: room made once, columns that all rows write together.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from datablame.surface.sampler.prefill import Prompts, cache_argument, left_padded

States = Sequence[Float[Tensor, "prompts models heads tokens _"]]
"""Keys and values of a layer."""
New = Int[Tensor, " new"]
TokenStates = Float[Tensor, "rows heads 1 _"]
RowStates = Float[Tensor, "rows heads tokens _"]
Survivors = Int[Tensor, " on"]
Sources = Int[Tensor, " alive"]
Holes = Int[Tensor, " holes"]


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

    def __init__(self, ring: Ring, states: States, rows: int) -> None:
        super().__init__()
        self.dtype, self.device = states[0].dtype, states[0].device
        self.is_initialized = True
        self._ring = ring
        # Zeros, for what a mask hides is still multiplied by 0.
        self._buffers = [
            each.new_zeros(rows, each.shape[1], each.shape[2], ring.columns, each.shape[4]) for each in states
        ]
        self.keys, self.values = (buffer.flatten(0, 1) for buffer in self._buffers)

    def update(
        self, key_states: TokenStates, value_states: TokenStates, *args: Any, **kwargs: Any
    ) -> tuple[RowStates, RowStates]:
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

    def add_rows(self, rows: New, states: States, prompts: New, slices: list[tuple[slice, slice]]) -> None:
        """Copy a prompt's states into each of the rows."""
        for buffer, each in zip(self._buffers, states, strict=True):
            for part, columns in slices:
                buffer[rows, :, :, columns] = each[:, :, :, part][prompts]

    def move_rows(self, sources: Holes, holes: Holes) -> None:
        """Move rows from the end into the holes that finished rows leave."""
        for buffer in self._buffers:
            buffer[holes, :, :, : self._ring.span] = buffer[sources, :, :, : self._ring.span]


def compaction(alive: Bool[Tensor, " rows"]) -> tuple[Sources, Holes]:
    """Which row each row that stays comes from, as few as possible moved, and which rows are so filled."""
    survivors = alive.nonzero().squeeze(1)
    count = len(survivors)
    sources = torch.arange(count, device=alive.device)
    holes = (~alive[:count]).nonzero().squeeze(1)
    sources[holes] = survivors[count - len(holes) :]
    return sources, holes


def refillable(model: Any) -> bool:
    """Whether every layer holds all its keys and values and the model takes a ready-made mask with positions."""
    layers = DynamicCache(config=model.config).layers
    return (
        bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and model.config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(model.forward).parameters
        and not getattr(model.config, "alibi", False)
    )


class RingDecoder:
    """A batch that is refilled while it runs: its caches are rings, and one ready-made mask serves all layers."""

    def __init__(self, prompts: Prompts, rows: int, steps: int) -> None:
        model = prompts.model
        self._prompts, self._model, self._device = prompts, model, model.device
        self._cache, self._cache_name = DynamicCache(config=model.config), cache_argument(model)
        self._ring = Ring(max(prompts.lengths) + steps - 1)
        self._capacity, self._count = rows, 0
        columns, device = self._ring.columns, model.device
        self._columns = torch.arange(columns, device=device)
        # 0 lets a token be seen; a row that is not in use sees all, for a softmax over nothing is no number.
        self._mask = torch.zeros(rows, 1, 1, columns, dtype=model.dtype, device=device)
        self._position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._alike = False
        """Whether the rows began together with prompts of one length: they fill every column and need no mask."""

    def first(self, prompts: Sequence[int]) -> Float[Tensor, "new models embedding"]:
        """The logits after each prompt, read now if none asked before."""
        chunks = self._prompts.chunks_of(prompts)
        order = torch.tensor([index for _, indices, _ in chunks for index in indices], device=self._device)
        logits = torch.cat([chunk.logits[torch.tensor(inside, device=self._device)] for chunk, _, inside in chunks])
        return logits[order.argsort()]

    def add_rows(self, prompts: Sequence[int], survivors: Survivors, rows: Survivors, count: int) -> None:
        """The survivors of the prompts become these rows, of `count` in all; their columns end before the next."""
        survivors, rows = survivors.to(self._device), rows.to(self._device)
        joining = [prompts[index] for index in survivors.tolist()]
        lengths = [self._prompts.lengths[prompt] for prompt in joining]
        self._alike = self._count == 0 and min(lengths) == max(lengths)
        if self._count == 0:
            self._ring.restart(max(lengths))
        self._count = count
        for chunk, indices, inside in self._prompts.chunks_of(joining):
            longest = max(lengths[index] for index in indices)
            slices = self._ring.behind(longest)
            targets = rows[torch.tensor(indices, device=self._device)]
            for layer, states in zip(self._layers(chunk.states), chunk.states, strict=True):
                ends = [each[:, :, :, chunk.tokens - longest :] for each in states]
                layer.add_rows(targets, ends, torch.tensor(inside, device=layer.device), slices)
        length = torch.tensor(lengths, device=self._device)[:, None]
        age = (self._columns - self._ring.column) % self._ring.columns
        hidden = age < self._ring.columns - length
        mask = torch.zeros_like(hidden, dtype=self._mask.dtype).masked_fill(hidden, -math.inf)
        self._mask[rows] = mask[:, None, None]
        self._position[rows] = length

    def drop_rows(self, sources: Sources, holes: Holes) -> None:
        """Leave as many rows as there are sources; the last ones fill the holes."""
        self._count = len(sources)
        if len(holes) == 0:
            return
        holes, sources = holes.to(self._device), sources[holes].to(self._device)
        for layer in self._cache.layers:
            layer.move_rows(sources.to(layer.device), holes.to(layer.device))
        self._mask[holes] = self._mask[sources]
        self._position[holes] = self._position[sources]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows models embedding"]:
        """Read each row's token."""
        n = self._count
        self._mask[:n, :, :, self._ring.advance()] = 0
        logits: Tensor = self._model(
            input_ids=tokens.to(self._device)[:, None],
            attention_mask=None if self._alike else self._mask[:n, :, :, : self._ring.span],
            position_ids=self._position[: 1 if self._alike else n],
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
        ).logits[:, -1]
        self._position[:n] += 1
        by_model: Tensor = logits.unflatten(0, (n, self._prompts.models))
        return by_model

    def _layers(self, states: Sequence[tuple[Tensor, Tensor]]) -> list[RingLayer]:
        if not isinstance(self._cache.layers[0], RingLayer):
            self._cache.layers = [RingLayer(self._ring, pair, self._capacity) for pair in states]
        return list(self._cache.layers)


class StockDecoder:
    """A batch that shrinks only, over the cache that transformers itself makes: sliding windows, flash attention."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], steps: int) -> None:
        self._model, self._device, self._prompts, self._steps = model, model.device, prompts, steps
        self._cache_name = cache_argument(model)

    def first(self, prompts: Sequence[int]) -> Float[Tensor, "new 1 embedding"]:
        """Read the prompts, each once."""
        distinct = sorted(set(prompts))
        self._expansion = torch.tensor([distinct.index(prompt) for prompt in prompts], device=self._device)
        ids, self._mask, self._position = left_padded([self._prompts[prompt] for prompt in distinct], self._device)
        self._cache = DynamicCache(config=self._model.config)
        self._tokens = ids.shape[1]
        logits: Tensor = self._forward(ids)
        return logits[self._expansion][:, None]

    def add_rows(self, prompts: Sequence[int], survivors: Survivors, rows: Survivors, count: int) -> None:
        """Expand the prompts' cache to the rows, which are a new batch."""
        sources = self._expansion[survivors.to(self._device)]
        self._cache.batch_select_indices(sources)
        last = self._position[:, -1:]
        self._position = last.expand(len(sources), 1) if self._mask is None else last[sources]
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask[sources], (0, self._steps), value=1)

    def drop_rows(self, sources: Sources, holes: Holes) -> None:
        """Leave the sources."""
        sources = sources.to(self._device)
        self._cache.batch_select_indices(sources)
        self._position = self._position[sources]
        if self._mask is not None:
            self._mask = self._mask[sources]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1 embedding"]:
        """Read each row's token."""
        self._tokens += 1
        self._position = self._position + 1
        return self._forward(tokens.to(self._device)[:, None])[:, None]

    def _forward(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows embedding"]:
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=None if self._mask is None else self._mask[:, : self._tokens],
            position_ids=self._position,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
        ).logits
        return logits[:, -1]


Decoder = RingDecoder | StockDecoder
"""What a batch asks of a model: `first` gives the logits after prompts, `add_rows` makes them rows, `step` reads a
token for every row, `drop_rows` lets finished rows go. Logits have an axis of models: 2 where a trunk is shared."""
