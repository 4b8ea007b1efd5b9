"""Prompts read once for each model: their keys and values, and the logits of what follows."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

_CHUNK_TOKENS = 4096
_LOGIT_COPIES = 3
"""The head's output, its slice of the last token, and the part of a sort that truncation asks for."""


class Chunk(NamedTuple):
    """Some prompts as one model read them, padded on the left to one length; a tree with a shared trunk is two models.

    `states` are each layer's keys and values: prompts, models (1 where both share it), heads, tokens, width.
    """

    logits: Float[Tensor, "prompts models embedding"]
    states: list[tuple[Tensor, Tensor]]

    @property
    def tokens(self) -> int:
        """The length of the longest prompt."""
        return int(self.states[0][0].shape[-2])

    def row_bytes(self, columns: int) -> int:
        """What one row takes: keys and values of every column, all layers together, and its logits."""
        of_a_token = sum(t.nbytes for pair in self.states for t in pair) // (len(self.logits) * self.tokens)
        return of_a_token * columns + _LOGIT_COPIES * self.logits[0].numel() * self.logits.element_size()


class Prompts:
    """Distinct prompts and how one model reads them, a fixed chunk at a time, when one of the chunk is asked for.

    What was read stays in memory while it takes no more than `most_tokens` tokens, the oldest given up first.
    """

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], rows: int, most_tokens: int) -> None:
        self.model, self.models = model, getattr(model, "shared_trunk_of", 1)
        self.lengths = [len(prompt) for prompt in prompts]
        self._prompts, self._most_tokens = prompts, most_tokens
        self._bounds = _chunk_bounds(self.lengths, rows)
        self._chunk_of = [chunk for chunk, (start, end) in enumerate(self._bounds) for _ in range(start, end)]
        self._chunks: dict[int, Chunk] = {}

    def chunks_of(self, prompts: Sequence[int]) -> list[tuple[Chunk, list[int], list[int]]]:
        """The chunks that the numbered prompts are in, each with its indices in `prompts` and in the chunk."""
        chunks = []
        for number in dict.fromkeys(self._chunk_of[prompt] for prompt in prompts):
            indices = [index for index, prompt in enumerate(prompts) if self._chunk_of[prompt] == number]
            start, end = self._bounds[number]
            if number not in self._chunks:
                self._chunks[number] = _read(self.model, self._prompts[start:end], self.models)
                held = self._chunks
                while len(held) > 1 and sum(len(c.logits) * c.tokens for c in held.values()) > self._most_tokens:
                    del held[next(iter(held))]
            chunks.append((self._chunks[number], indices, [prompts[index] - start for index in indices]))
        return chunks


def _chunk_bounds(lengths: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """Consecutive prompts cut into chunks of at most `rows` prompts and, with padding, about _CHUNK_TOKENS tokens."""
    bounds, start, longest = [], 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        count = index - start + 1
        if count > 1 and (count > rows or count * longest > _CHUNK_TOKENS):
            bounds.append((start, index))
            start, longest = index, length
    return [*bounds, (start, len(lengths))]


def _read(model: Any, prompts: Sequence[tuple[int, ...]], models: int) -> Chunk:
    ids, mask, positions = left_padded(prompts, model.device)
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(model): cache},
    ).logits[:, -1]
    n = len(prompts)
    states = [tuple(t.unflatten(0, (n, len(t) // n)) for t in (layer.keys, layer.values)) for layer in cache.layers]
    return Chunk(logits.unflatten(0, (n, models)), states)


def left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "prompts tokens"], Int[Tensor, "prompts tokens"] | None, Int[Tensor, "_ tokens"]]:
    """Ids, mask (none where all are of one length) and positions."""
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    # What a mask hides has no influence; 0 is a token of every vocabulary.
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    if min(lengths) == longest:
        return ids, None, torch.arange(longest, device=device)[None]
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def cache_argument(model: Any) -> str:
    """What the model calls its cache: transformers 5.24 renamed the argument, and 5.40 drops the old name."""
    old = "past_key_values"
    return old if old in inspect.signature(model.forward).parameters else "cache"
