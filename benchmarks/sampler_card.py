"""The part of sampler.py for a graphics card: tokens per second of both models."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from gradients import OLMO2, SMALL
from measure import ROUNDS, interleaved
from sampler import Size, ours, pair_of, requests

from datablame.surface.sampler.sampler import Request

_PROMPT = 64


class Card(NamedTuple):
    """Both models on a device, what is drawn, and how fast the device's memory is."""

    device: str
    after: Any
    before: Any
    size: Size
    bytes_a_second: float


class Speed(NamedTuple):
    """Of one batch, with its share of what reading memory alone would allow."""

    batch: int
    tokens_a_second: float
    share: float


def prepared(device: str, reduced: bool, dtype: torch.dtype) -> Card:
    """OLMo-2-1B's shape in 16 bits, or a small one in float32."""
    shape, dtype = (SMALL, torch.float32) if reduced else (OLMO2, dtype)
    bytes_a_second = _bandwidth(device, reduced)
    after, before = pair_of(shape, device, dtype)
    return Card(device, after, before, Size(shape, 1, ROUNDS, 0, 16 if reduced else 128, (), ()), bytes_a_second)


def speed_of(card: Card, batch: int, rounds: int = ROUNDS) -> Speed:
    """Tokens per second of one batch."""
    wanted = requests(card.size, batch, _PROMPT)
    contenders: dict[str, Callable[[], object]] = {
        "ours": partial(_waited, card.after, card.before, wanted, card.size, batch)
    }
    seconds = interleaved(contenders, rounds)["ours"].wall
    best = _least_seconds(card.after, batch, _PROMPT, card.size.new, card.bytes_a_second)
    return Speed(batch, batch * card.size.new / seconds, best / seconds)


def _waited(after: Any, before: Any, wanted: Sequence[Request], size: Size, rows: int) -> None:
    ours(after, before, wanted, size, size.new, batch_rows=rows)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _least_seconds(model: Any, n: int, tokens: int, new: int, bytes_a_second: float) -> float:
    """Both models' weights and all rows' keys and values, read once a step."""
    config = model.config
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    number_bytes = next(model.parameters()).element_size()
    weights = sum(weight.nbytes for weight in model.parameters()) - model.get_input_embeddings().weight.nbytes
    cached = 2 * config.num_hidden_layers * width * number_bytes * n * sum(range(tokens, tokens + new))
    return float(2 * (new * weights + cached) / bytes_a_second)


def _bandwidth(device: str, reduced: bool) -> float:
    """Bytes read and written a second by a large copy, the best of ten."""
    source = torch.zeros((1 << 24) if reduced else (1 << 30), device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * source.nbytes / (time.perf_counter() - began))
    return best
