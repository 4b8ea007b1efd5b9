"""The part of sampler.py for a graphics card: tokens per second of both models, with and without CUDA graphs."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gradients import OLMO2, SMALL
from measure import ROUNDS, interleaved
from sampler import Size, ours, pair_of, requests

from datablame.surface.sampler.graphs import Graphs
from datablame.surface.sampler.sampler import Request, Settings, sample

_PROMPT = 64


def on_card(device: str, reduced: bool) -> str:
    """Tokens per second by batch, with and without CUDA graphs, beside what reading memory alone would allow."""
    shape, dtype = (SMALL, torch.float32) if reduced else (OLMO2, torch.bfloat16)
    after, before = pair_of(shape, device, dtype)
    size = Size(shape, 1, ROUNDS, 0, 16 if reduced else 128, (), ())
    bytes_a_second = _bandwidth(device, reduced)
    lines = []
    for n in (4, 8) if reduced else (64, 512, 2048):
        wanted = requests(size, n, _PROMPT)
        options: dict[str, Any] = {"batch_rows": n}
        contenders: dict[str, Callable[[], object]] = {"eager": partial(_waited, after, before, wanted, size, options)}
        if device == "cuda":
            contenders["graphs"] = partial(_waited, after, before, wanted, size, {**options, "graphs": Graphs})
        for name, times in interleaved(contenders, ROUNDS).items():
            best = _least_seconds(after, n, _PROMPT, size.new, bytes_a_second)
            lines.append(f"| {n:,} | {name} | {n * size.new / times.wall:,.0f} | {best / times.wall:.0%} |")
    if device == "cuda":
        lines.append(f"\nOutputs that graphs change: {_changed(after, before, size)} of 64.")
    head = "| batch | steps | tokens/s | of the bandwidth limit |\n|---:|---|---:|---:|"
    speed = f"memory is copied at {bytes_a_second / 1e9:,.0f} GB/s"
    told = f"{shape.name} with random weights, both models, {_PROMPT} to {size.new} tokens; {speed}."
    return "\n".join([told, "", head, *lines])


def _waited(after: Any, before: Any, wanted: Sequence[Request], size: Size, options: dict[str, Any]) -> None:
    ours(after, before, wanted, size, size.new, **options)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _least_seconds(model: Any, n: int, tokens: int, new: int, bytes_a_second: float) -> float:
    """Both models' weights and all rows' keys and values, read once a step."""
    config = model.config
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    number_bytes = next(model.parameters()).element_size()
    weights = sum(weight.nbytes for weight in model.parameters()) - model.get_input_embeddings().weight.nbytes
    cached = 2 * config.num_hidden_layers * width * number_bytes * n * sum(range(tokens, tokens + new))
    return 2 * (new * weights + cached) / bytes_a_second


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


def _changed(after: Any, before: Any, size: Size) -> int:
    """How many of 64 outputs differ with graphs: rounding may, anything else must not."""
    options: dict[str, Any] = {"settings": Settings(size.new), "stop_ids": (), "batch_rows": 64}
    made = [
        sample(
            after, before, requests(size, 64, _PROMPT), vocabulary_size=size.shape.vocabulary, graphs=graphs, **options
        )
        for graphs in (None, Graphs)
    ]
    return sum(one != other for one, other in zip(*made, strict=True))
