"""Prompts read once for each model: their keys and values, and the logits of what follows."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

_CHUNK_TOKENS = 4096


class Chunk(NamedTuple):
    """Some prompts as one model read them, padded on the left to one length; `branches` are a forked model's two."""

    logits: Float[Tensor, "prompts branches embedding"]
    states: list[tuple[Tensor, Tensor]]
    """Each layer's keys and values: prompts, branches (1 where both share it), heads, tokens, width."""

    @property
    def tokens(self) -> int:
        """The length of the longest prompt."""
        return int(self.states[0][0].shape[-2])

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token of one prompt, all layers together."""
        return sum(t.nbytes for pair in self.states for t in pair) // (len(self.logits) * self.tokens)


class Prompts:
    """Distinct prompts and how one model reads them, a fixed chunk at a time, when one of the chunk is asked for.

    What was read is kept while it takes no more than `kept_tokens` tokens, the oldest given up first.
    """

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], rows: int, kept_tokens: int) -> None:
        self.model, self.branches = model, getattr(model, "branches", 1)
        self.lengths = [len(prompt) for prompt in prompts]
        self._prompts, self._kept_tokens = prompts, kept_tokens
        self._starts = _starts(self.lengths, rows)
        self._number = [chunk for chunk, (start, end) in enumerate(self._starts) for _ in range(start, end)]
        self._read: dict[int, Chunk] = {}

    def groups(self, numbers: Sequence[int]) -> list[tuple[Chunk, list[int], list[int]]]:
        """The chunks that the numbered prompts are in, each with the places in `numbers` and in the chunk."""
        found = []
        for chunk in dict.fromkeys(self._number[number] for number in numbers):
            places = [place for place, number in enumerate(numbers) if self._number[number] == chunk]
            start = self._starts[chunk][0]
            found.append((self._chunk(chunk), places, [numbers[place] - start for place in places]))
        return found

    def _chunk(self, number: int) -> Chunk:
        if number not in self._read:
            start, end = self._starts[number]
            self._read[number] = _read(self.model, self._prompts[start:end], self.branches)
            while len(self._read) > 1 and self._held() > self._kept_tokens:
                del self._read[next(iter(self._read))]
        return self._read[number]

    def _held(self) -> int:
        return sum(len(chunk.logits) * chunk.tokens for chunk in self._read.values())


def _starts(lengths: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """Consecutive prompts cut into chunks of at most `rows` prompts and, with padding, about _CHUNK_TOKENS tokens."""
    found, start, longest = [], 0, 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        many = place - start + 1
        if many > 1 and (many > rows or many * longest > _CHUNK_TOKENS):
            found.append((start, place))
            start, longest = place, length
    return [*found, (start, len(lengths))]


def _read(model: Any, prompts: Sequence[tuple[int, ...]], branches: int) -> Chunk:
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
    return Chunk(logits.unflatten(0, (n, branches)), states)


def left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "prompts tokens"], Int[Tensor, "prompts tokens"] | None, Int[Tensor, "_ tokens"]]:
    """Ids, mask (none where all are of one length) and positions."""
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    # What stands in a masked place has no influence; 0 is a token of every vocabulary.
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    if min(lengths) == longest:
        return ids, None, torch.arange(longest, device=device)[None]
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def cache_argument(model: Any) -> str:
    """What the model calls its cache: transformers 5.24 renamed the argument, and 5.40 drops the old name."""
    old = "past_key_values"
    return old if old in inspect.signature(model.forward).parameters else "cache"
