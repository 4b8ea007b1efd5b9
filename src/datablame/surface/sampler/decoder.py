"""One model over the rows of a batch: prompts are read once, rows join and leave, a token is read for every row."""

import inspect
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from datablame.models.likelihood import length_batches

_CHUNK_TOKENS = 4096
_PROBE_TOKENS = 5
_caches_well: "weakref.WeakKeyDictionary[torch.nn.Module, bool]" = weakref.WeakKeyDictionary()
_LOGIT_COPIES = 3
"""The head's output, its slice of the last token, and the part of a sort that truncation asks for."""

States = Sequence[Float[Tensor, "prompts models heads tokens _"]]
"""Keys and values of a layer."""
TokenStates = Float[Tensor, "rows heads 1 _"]
RowStates = Float[Tensor, "rows heads tokens _"]
Rows = Int[Tensor, " on"]
Sources = Int[Tensor, " alive"]
Holes = Int[Tensor, " holes"]


class Chunk(NamedTuple):
    """Some prompts as one model read them, padded on the left to one length; a shared trunk is two models."""

    logits: Float[Tensor, "prompts models embedding"]
    states: list[tuple[Tensor, Tensor]]
    """Each layer's keys and values: prompts, models (1 where both share it), heads, tokens, width."""

    @property
    def tokens(self) -> int:
        """The length of the longest prompt."""
        return int(self.states[0][0].shape[-2])

    def row_bytes(self, columns: int) -> int:
        """What one row takes: keys and values of every column, all layers together, and its logits."""
        of_a_token = sum(t.nbytes for pair in self.states for t in pair) // (len(self.logits) * self.tokens)
        return of_a_token * columns + _LOGIT_COPIES * self.logits[0].numel() * self.logits.element_size()


class Prompts:
    """Distinct prompts by length as one model reads them, in chunks, of which `most_tokens` tokens are kept."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], rows: int, most_tokens: int) -> None:
        self.model, self.models, self.reader = model, getattr(model, "shared_trunk_of", 1), reader_of(model)
        self.lengths = [len(prompt) for prompt in prompts]
        self._prompts, self._most_tokens = prompts, most_tokens
        self._numbers = length_batches(self.lengths, _CHUNK_TOKENS, most=rows)
        self._chunk_of = {prompt: chunk for chunk, numbers in enumerate(self._numbers) for prompt in numbers}
        self._chunks: dict[int, Chunk] = {}

    def chunks_of(self, prompts: Sequence[int]) -> list[tuple[Chunk, list[int], list[int]]]:
        """The chunks that the numbered prompts are in, each with its indices in `prompts` and in the chunk."""
        chunks = []
        for number in dict.fromkeys(self._chunk_of[prompt] for prompt in prompts):
            indices = [index for index, prompt in enumerate(prompts) if self._chunk_of[prompt] == number]
            of_chunk, held = self._numbers[number], self._chunks
            if number not in held:
                held[number] = self._read([self._prompts[prompt] for prompt in of_chunk])
                while len(held) > 1 and sum(len(c.logits) * c.tokens for c in held.values()) > self._most_tokens:
                    del held[next(iter(held))]
            chunks.append((held[number], indices, [prompts[index] - of_chunk[0] for index in indices]))
        return chunks

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> Chunk:
        n, cache = len(prompts), DynamicCache(config=self.model.config)
        logits = self.reader(cache, *left_padded(prompts, self.model.device))
        states = [tuple(t.unflatten(0, (n, len(t) // n)) for t in (layer.keys, layer.values)) for layer in cache.layers]
        return Chunk(logits.unflatten(0, (n, self.models)), states)


def left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "prompts tokens"], Int[Tensor, "prompts tokens"] | None, Int[Tensor, "_ tokens"]]:
    """Ids, mask (none where all are of one length) and positions."""
    # What a mask hides has no influence; 0 is a token of every vocabulary.
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_side="left").to(device)
    lengths, columns = torch.tensor([len(prompt) for prompt in prompts]), torch.arange(ids.shape[1])
    if int(lengths.min()) == len(columns):
        return ids, None, columns[None].to(device)
    mask = (columns >= len(columns) - lengths[:, None]).long().to(device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def reader_of(model: Any) -> Callable[..., Float[Tensor, "rows embedding"]]:
    """Gives the logits after the last of some tokens, from a cache, ids, mask and positions."""
    taken = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    # transformers 5.24 renamed the argument that is the cache, and 5.40 drops the old name; Mamba has its own.
    name = next((each for each in ("past_key_values", "cache_params") if each in taken), "cache")

    def read(cache: DynamicCache, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Any:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, name: cache}
        given = {key: value for key, value in inputs.items() if takes_all or key in taken}
        return model(**given, use_cache=True, logits_to_keep=1).logits[:, -1]

    return read


class Ring:
    """Which column is written next and which columns are in use, the same for every layer of a model.

    All rows write a new token into the same column, at last 0 again; a row that joins has its prompt before that one.
    A mask says which are a row's own: keys carry their position, so that the order of columns has no meaning.
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
        self.dtype, self.device, self.is_initialized = states[0].dtype, states[0].device, True
        self._ring = ring
        # Zeros, for what a mask hides is still multiplied by 0.
        self._buffers = [each.new_zeros(rows, *each.shape[1:3], ring.columns, each.shape[4]) for each in states]
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

    def add_rows(self, rows: Rows, states: States, prompts: Rows, slices: list[tuple[slice, slice]]) -> None:
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
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=model.config).layers
    return (
        bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(model.forward).parameters
        and not getattr(config, "alibi", False)
        # GPT-Neo's windows are cut by columns, whatever the mask says.
        and "local" not in getattr(config, "attention_layers", ())
    )


class RingDecoder:
    """A batch that is refilled while it runs: its caches are rings, and one ready-made mask serves all layers."""

    def __init__(self, prompts: Prompts, rows: int, steps: int) -> None:
        model = prompts.model
        self._prompts, self._device, self._capacity, self._count = prompts, model.device, rows, 0
        self._cache, self._ring = DynamicCache(config=model.config), Ring(max(prompts.lengths) + steps - 1)
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

    def add_rows(self, prompts: Sequence[int], survivors: Rows, rows: Rows, count: int) -> None:
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
            if not isinstance(self._cache.layers[0], RingLayer):
                self._cache.layers = [RingLayer(self._ring, pair, self._capacity) for pair in chunk.states]
            for layer, states in zip(self._cache.layers, chunk.states, strict=True):
                ends = [each[:, :, :, chunk.tokens - longest :] for each in states]
                layer.add_rows(targets, ends, torch.tensor(inside, device=layer.device), slices)
        length = torch.tensor(lengths, device=self._device)[:, None]
        hidden = (self._columns - self._ring.column) % self._ring.columns < self._ring.columns - length
        self._mask[rows] = self._mask.new_zeros(hidden.shape).masked_fill(hidden, -math.inf)[:, None, None]
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
        mask = None if self._alike else self._mask[:n, :, :, : self._ring.span]
        position = self._position[: 1 if self._alike else n]
        logits = self._prompts.reader(self._cache, tokens.to(self._device)[:, None], mask, position)
        self._position[:n] += 1
        by_model: Tensor = logits.unflatten(0, (n, self._prompts.models))
        return by_model


class StockDecoder:
    """A batch that shrinks only, over the cache that transformers itself makes: sliding windows, recurrent states."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], steps: int) -> None:
        self._model, self._device, self._prompts, self._steps = model, model.device, prompts, steps
        self._reader = reader_of(model)
        layers = DynamicCache(config=model.config).layers
        self.pads = all(isinstance(layer, DynamicLayer) and not hasattr(layer, "conv_states") for layer in layers)
        """Whether prompts of several lengths may be in a batch: a mask hides padding from keys, not from states."""

    def first(self, prompts: Sequence[int]) -> Float[Tensor, "new 1 embedding"]:
        """Read the prompts, each once."""
        distinct = sorted(set(prompts))
        self._expansion = torch.tensor([distinct.index(prompt) for prompt in prompts], device=self._device)
        ids, mask, positions = left_padded([self._prompts[prompt] for prompt in distinct], self._device)
        self._cache, self._tokens = DynamicCache(config=self._model.config), ids.shape[1]
        self._position = positions[:, -1:].expand(len(ids), 1)
        self._mask = None if mask is None else torch.nn.functional.pad(mask, (0, self._steps), value=1)
        return self._reader(self._cache, ids, mask, positions)[self._expansion][:, None]

    def add_rows(self, prompts: Sequence[int], survivors: Rows, rows: Rows, count: int) -> None:
        """Expand the prompts' cache to the rows, which are a new batch."""
        self.drop_rows(self._expansion[survivors.to(self._device)], rows)

    def drop_rows(self, sources: Sources, holes: Holes) -> None:
        """Leave the sources."""
        sources = sources.to(self._device)
        # Every kind of layer can be reordered, for beam search; not all can be selected from.
        self._cache.reorder_cache(sources)
        self._position = self._position[sources]
        if self._mask is not None:
            self._mask = self._mask[sources]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1 embedding"]:
        """Read each row's token."""
        self._tokens += 1
        self._position = self._position + 1
        mask = None if self._mask is None else self._mask[:, : self._tokens]
        return self._reader(self._cache, tokens.to(self._device)[:, None], mask, self._position)[:, None]


class RereadDecoder:
    """A batch of prompts of one length that is read from its beginning for every token: right for every model."""

    pads = False

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        self._model, self._prompts = model, prompts

    def first(self, prompts: Sequence[int]) -> Float[Tensor, "new 1 embedding"]:
        """Read the prompts."""
        self._ids = torch.tensor([self._prompts[prompt] for prompt in prompts], device=self._model.device)
        logits: Tensor = self._model(input_ids=self._ids, use_cache=False).logits[:, -1:]
        return logits

    def add_rows(self, prompts: Sequence[int], survivors: Rows, rows: Rows, count: int) -> None:
        """The survivors are a new batch."""
        self.drop_rows(survivors, rows)

    def drop_rows(self, sources: Sources, holes: Holes) -> None:
        """Leave the sources."""
        self._ids = self._ids[sources.to(self._ids.device)]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1 embedding"]:
        """Read each row again, with its token."""
        self._ids = torch.cat([self._ids, tokens.to(self._ids.device)[:, None]], 1)
        logits: Tensor = self._model(input_ids=self._ids, use_cache=False).logits[:, -1:]
        return logits


Decoder = RingDecoder | StockDecoder | RereadDecoder
"""What a batch asks of a model: `first` gives the logits after prompts, `add_rows` makes them rows, `step` reads a
token for every row, `drop_rows` lets finished rows go. Logits have an axis of models: 2 where a trunk is shared."""


def decoder_without_refill(model: Any, prompts: Sequence[tuple[int, ...]], steps: int) -> StockDecoder | RereadDecoder:
    """Over the model's own cache where that gives what reading everything anew does, which is seen on a probe."""
    if model not in _caches_well:
        _caches_well[model] = _caches(model)
    return StockDecoder(model, prompts, steps) if _caches_well[model] else RereadDecoder(model, prompts)


def _caches(model: Any) -> bool:
    """Whether two rows of one prompt get, token by token, the logits that they get without a cache.

    The largest error of each token is held against the largest difference between two of its logits, in the mean, for
    rounding may send a token to another expert.
    """
    probe = tuple(range(1, _PROBE_TOKENS + 1))
    steps = [torch.tensor([token, token + 1]) for token in probe]
    plain = RereadDecoder(model, [probe])
    plain.first([0, 0])
    theirs = torch.cat([plain.step(tokens) for tokens in steps]).float()
    try:
        cached, rows = StockDecoder(model, [probe], len(steps)), torch.arange(2)
        cached.first([0, 0])
        cached.add_rows([0, 0], rows, rows, 2)
        ours = torch.cat([cached.step(tokens) for tokens in steps]).float()
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return False
    errors = (ours - theirs).abs().amax(-1) / (theirs.amax(-1) - theirs.amin(-1))
    return bool(errors.mean() <= min(32 * torch.finfo(model.dtype).eps, 0.1))
