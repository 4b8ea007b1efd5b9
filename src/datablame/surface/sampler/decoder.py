"""One model over the rows of a batch: prompts join, a token is read for every row, finished rows leave."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from datablame.surface.sampler.cache import Ring, RingLayer
from datablame.surface.sampler.graphs import Graphs
from datablame.surface.sampler.prefill import Prompts, cache_argument, left_padded


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

    refills = True

    def __init__(self, prompts: Prompts, rows: int, steps: int, graphs: Callable[..., Graphs] | None = None) -> None:
        model = prompts.model
        self._prompts, self._model, self._device = prompts, model, model.device
        self._cache, self._name = DynamicCache(config=model.config), cache_argument(model)
        self._ring = Ring(max(prompts.lengths) + steps - 1)
        self._capacity, self._count = rows, 0
        columns, device = self._ring.columns, model.device
        self._columns = torch.arange(columns, device=device)
        # 0 lets a token be seen; a row that is not in use sees all, for a softmax over nothing is no number.
        self._mask = torch.zeros(rows, 1, 1, columns, dtype=model.dtype, device=device)
        self._position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._alike = False
        self._graphs = None if graphs is None else graphs(self._forward, rows, device)
        if self._graphs is not None:
            self._ring.pointer = torch.zeros(1, dtype=torch.long, device=device)

    def first(self, numbers: Sequence[int]) -> Float[Tensor, "new branches embedding"]:
        """The logits after each prompt, read now if none asked before."""
        groups = self._prompts.groups(numbers)
        order = torch.tensor([place for _, places, _ in groups for place in places], device=self._device)
        logits = torch.cat([chunk.logits[torch.tensor(inside, device=self._device)] for chunk, _, inside in groups])
        return logits[order.argsort()]

    def place(
        self, numbers: Sequence[int], survivors: Int[Tensor, " on"], rows: Int[Tensor, " on"], count: int
    ) -> None:
        """The survivors of the prompts become these rows, of `count` in all; their columns end before the next."""
        survivors, rows = survivors.to(self._device), rows.to(self._device)
        staying = [numbers[place] for place in survivors.tolist()]
        lengths = [self._prompts.lengths[number] for number in staying]
        if self._count == 0:
            self._ring.restart(max(lengths))
            self._alike = min(lengths) == max(lengths)
        else:
            self._alike = False
        self._count = count
        for chunk, places, inside in self._prompts.groups(staying):
            needed = max(lengths[place] for place in places)
            where = self._ring.behind(needed)
            target = rows[torch.tensor(places, device=self._device)]
            for layer, states in zip(self._layers(chunk.states), chunk.states, strict=True):
                keys, values = (each[:, :, :, chunk.tokens - needed :] for each in states)
                layer.place(target, keys, values, torch.tensor(inside, device=layer.device), where)
        length = torch.tensor(lengths, device=self._device)[:, None]
        age = (self._columns - self._ring.column) % self._ring.columns
        hidden = age < self._ring.columns - length
        self._mask[rows] = torch.zeros_like(hidden, dtype=self._mask.dtype).masked_fill(hidden, -math.inf)[
            :, None, None
        ]
        self._position[rows] = length

    def keep(self, kept: Int[Tensor, " kept"], holes: Int[Tensor, " holes"]) -> None:
        """Drop the rows that finished; the last ones fill their places."""
        self._count = len(kept)
        if len(holes) == 0:
            return
        holes, movers = holes.to(self._device), kept[holes].to(self._device)
        for layer in self._cache.layers:
            layer.close_up(holes.to(layer.device), movers.to(layer.device))
        self._mask[holes] = self._mask[movers]
        self._position[holes] = self._position[movers]

    def launch(self, chosen: Int[Tensor, " rows"]) -> Float[Tensor, "rows branches embedding"]:
        """Read each row's chosen token."""
        n = self._count
        self._tokens[:n, 0] = chosen.to(self._device)
        column = self._ring.advance()
        self._mask[:n, :, :, column] = 0
        logits = self._forward(n) if self._graphs is None else self._graphs(n)
        self._position[:n] += 1
        branched: Tensor = logits[: n * self._prompts.branches].unflatten(0, (n, self._prompts.branches))
        return branched

    def join(self) -> None:
        """Wait for the model's own stream, where it has one."""
        if self._graphs is not None:
            self._graphs.join()

    def _forward(self, rows: int) -> Float[Tensor, "outputs embedding"]:
        # Rows of one prompt length that began together fill every column: no mask, and one position for all.
        alike = self._alike and self._graphs is None
        logits: Tensor = self._model(
            input_ids=self._tokens[:rows],
            attention_mask=None if alike else self._mask[:rows, :, :, : self._ring.span],
            position_ids=self._position[: 1 if alike else rows],
            use_cache=True,
            logits_to_keep=1,
            **{self._name: self._cache},
        ).logits
        return logits[:, -1]

    def _layers(self, states: Sequence[tuple[Tensor, Tensor]]) -> list[RingLayer]:
        if not isinstance(self._cache.layers[0], RingLayer):
            self._cache.layers = [RingLayer(self._ring, *each, self._capacity) for each in states]
        return list(self._cache.layers)


class StockDecoder:
    """A batch that shrinks only, over the cache that transformers itself makes: sliding windows, flash attention."""

    refills = False

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], steps: int) -> None:
        self._model, self._device, self._texts, self._steps = model, model.device, prompts, steps
        self._name = cache_argument(model)

    def first(self, numbers: Sequence[int]) -> Float[Tensor, "new 1 embedding"]:
        """Read the prompts, each once."""
        distinct = sorted(set(numbers))
        self._expansion = torch.tensor([distinct.index(number) for number in numbers], device=self._device)
        ids, self._mask, self._position = left_padded([self._texts[number] for number in distinct], self._device)
        self._cache = DynamicCache(config=self._model.config)
        self._tokens = ids.shape[1]
        logits: Tensor = self._forward(ids)
        return logits[self._expansion][:, None]

    def place(
        self, numbers: Sequence[int], survivors: Int[Tensor, " on"], rows: Int[Tensor, " on"], count: int
    ) -> None:
        """Expand the prompts' cache to the rows, which are a new batch."""
        source = self._expansion[survivors.to(self._device)]
        self._cache.batch_select_indices(source)
        last = self._position[:, -1:]
        self._position = last.expand(len(source), 1) if self._mask is None else last[source]
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask[source], (0, self._steps), value=1)

    def keep(self, kept: Int[Tensor, " kept"], holes: Int[Tensor, " holes"]) -> None:
        """Drop the rows that finished."""
        kept = kept.to(self._device)
        self._cache.batch_select_indices(kept)
        self._position = self._position[kept]
        if self._mask is not None:
            self._mask = self._mask[kept]

    def launch(self, chosen: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1 embedding"]:
        """Read each row's chosen token."""
        self._tokens += 1
        self._position = self._position + 1
        return self._forward(chosen.to(self._device)[:, None])[:, None]

    def join(self) -> None:
        """Nothing runs beside."""

    def _forward(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows embedding"]:
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=None if self._mask is None else self._mask[:, : self._tokens],
            position_ids=self._position,
            use_cache=True,
            logits_to_keep=1,
            **{self._name: self._cache},
        ).logits
        return logits[:, -1]


Decoder = RingDecoder | StockDecoder
"""What a batch asks of a model: `first` gives the logits after prompts, `place` makes them rows, `launch` reads a token
for every row, `join` waits for its logits (with an axis of branches), `keep` drops rows. `refills`: whether prompts may
join rows that are going on."""
