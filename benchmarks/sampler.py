"""The two-model sampler against plain loops and `generate`.

Ratios of CPU time: below 1 ours is faster. Weights are random, in the shape of SmolLM2-135M; nothing stops before its
last token but where it is said, so that all draw equally many tokens. `generate` runs one model and mixes nothing: no
two-model sampler that runs its models in turn is faster than twice it.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from gradients import QUARTER, SMALL, SMOLLM2, Shape, model_of
from measure import ROUNDS, Amount, Row, Times, interleaved

from datablame.models.blocks import decoder_blocks
from datablame.models.load import twin
from datablame.seeds import stream_key
from datablame.surface.sampler.sampler import Request, sample
from datablame.surface.sampler.tokens import Settings

_BATCH, _PROMPT, _NEW = 50, 32, 64
_PROXY_SHAPES = ((8, 512), (512, 8), (8, 8))
"""Prompt and new tokens of Liu et al. (2024, arXiv 2401.08565), who time proxy-tuning with them."""
_PROXY_BATCH = 8
_STOP_SHARE = 1 / 24
"""Of the vocabulary, where outputs end at random lengths."""
_TWO = "two passes of generate, batch"


class Size(NamedTuple):
    """The shape of the models, and how much of everything is drawn."""

    shape: Shape
    threads: int
    rounds: int
    batch: int
    new: int
    proxy: tuple[tuple[int, int], ...]
    growth: tuple[int, ...]


SIZES: Mapping[Amount, Size] = {
    "full": Size(SMOLLM2, 2, ROUNDS, _BATCH, _NEW, _PROXY_SHAPES, (50, 100, 200, 400)),
    "quick": Size(QUARTER, 2, 3, _BATCH, _NEW // 2, ((8, 128), (128, 8)), ()),
    "reduced": Size(SMALL, 1, 1, 8, 8, ((8, 16), (16, 8), (8, 8)), (8, 16)),
}


def pair_of(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """After and before with weights of their own."""
    after, before = (model_of(shape, device, dtype) for _ in range(2))
    for weight in after.parameters():
        weight.data += 0.3 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0
    return after, before


def adapted(before: Any, layers: Sequence[int]) -> Any:
    """Before's weights with LoRA of rank 8 on all Linear layers of the blocks."""
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=8, target_modules=names, layers_to_transform=list(layers), init_lora_weights=False)
    return get_peft_model(twin(before), config).get_base_model().eval().requires_grad_(False)


def requests(size: Size, n: int, tokens: int = _PROMPT, alpha: float = 1.0) -> list[Request]:
    """`n` requests after one prompt."""
    prompt = tuple(range(10, 10 + tokens))
    return [Request(prompt, alpha, stream_key("benchmark", index)) for index in range(n)]


def ours(after: Any, before: Any, wanted: Sequence[Request], size: Size, new: int, **options: Any) -> None:
    """Both models in full: no alpha is 0, nothing is truncated."""
    options = {"stop_ids": (), "batch_rows": size.batch, "settings": Settings(new), **options}
    sample(after, before, wanted, vocabulary_size=size.shape.vocabulary, **options)


@torch.inference_mode()
def generated(model: Any, size: Size, n: int, tokens: int, new: int) -> None:
    """One model's `generate`, sampling from everything."""
    ids = torch.arange(10, 10 + tokens).expand(n, -1)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": new, "min_new_tokens": new}
    # The configuration that gradients.py makes has caches off.
    settings["use_cache"] = True
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)


@torch.inference_mode()
def plain_loop(after: Any, before: Any, tokens: int, new: int) -> None:
    """One output, both models over all tokens again at every step."""
    ids = torch.arange(10, 10 + tokens)[None]
    for _ in range(new):
        a, b = (model(input_ids=ids, use_cache=False).logits[:, -1] for model in (after, before))
        ids = torch.cat([ids, torch.multinomial((2 * a - b).softmax(-1), 1)], 1)


@torch.inference_mode()
def cached_loop(after: Any, before: Any, tokens: int, new: int) -> None:
    """One output, each model with the cache of transformers."""
    from transformers import DynamicCache

    # transformers 5.24 renamed the argument.
    name = "past_key_values" if "past_key_values" in inspect.signature(after.forward).parameters else "cache"
    models = [(model, DynamicCache(config=model.config)) for model in (after, before)]
    ids = torch.arange(10, 10 + tokens)[None]
    for _ in range(new):
        a, b = (model(input_ids=ids, use_cache=True, **{name: cache}).logits[:, -1] for model, cache in models)
        ids = torch.multinomial((2 * a - b).softmax(-1), 1)


def rows(amount: Amount) -> Iterator[Row]:
    """Every comparison on this machine's CPU."""
    size = SIZES[amount]
    torch.set_num_threads(size.threads)
    after, before = pair_of(size.shape)
    for compared in (_against_loops, _proxy_shapes, _refilling, _lora):
        yield from compared(after, before, size)


def _against_loops(after: Any, before: Any, size: Size) -> Iterator[Row]:
    n, new = size.batch, size.new
    times = interleaved(
        {
            "ours": lambda: ours(after, before, requests(size, n), size, new),
            "plain": lambda: plain_loop(after, before, _PROMPT, new),
            "cached": lambda: cached_loop(after, before, _PROMPT, new),
            "generate": lambda: generated(after, size, n, _PROMPT, new),
        },
        size.rounds,
    )
    shape = f"{_PROMPT} to {new} tokens"
    one = f"{n} outputs of ours against {n} times one of theirs"
    speed = f"the floor of two models; target 1.15; {_speed(times, n * new)}"
    yield _row(f"Sampler, {shape}: {_TWO} {n}", times, "generate", 2, speed)
    yield _row(f"Sampler, {shape}: plain loop, no caches", times, "plain", n, f"{one}; target .05")
    yield _row(f"Sampler, {shape}: caches, one at a time", times, "cached", n, one)


def _proxy_shapes(after: Any, before: Any, size: Size) -> Iterator[Row]:
    n = min(_PROXY_BATCH, size.batch)
    for tokens, new in size.proxy:
        wanted = requests(size, n, tokens)
        # One prompt would be read once by ours and n times by generate.
        wanted = [each._replace(prompt=(*each.prompt[:-1], 100 + i)) for i, each in enumerate(wanted)]
        contenders: dict[str, Callable[[], object]] = {
            "ours": partial(ours, after, before, wanted, size, new),
            "generate": partial(generated, after, size, n, tokens, new),
        }
        times = interleaved(contenders, size.rounds)
        note = f"every output after a prompt of its own; {_speed(times, n * new)}"
        yield _row(f"Sampler, {tokens} to {new} tokens: {_TWO} {n}", times, "generate", 2, note)


def _refilling(after: Any, before: Any, size: Size) -> Iterator[Row]:
    """Outputs of random lengths: what joins rows that are going on, against batches that only shrink."""
    wanted = requests(size, 3 * size.batch)
    groups = [wanted[start : start + size.batch] for start in range(0, len(wanted), size.batch)]
    stop_ids = range(1, size.shape.vocabulary, round(1 / _STOP_SHARE))

    def shrinking() -> None:
        for group in groups:
            ours(after, before, group, size, size.new // 2, stop_ids=stop_ids)

    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(after, before, wanted, size, size.new // 2, stop_ids=stop_ids),
        "shrinking": shrinking,
    }
    note = f"ours without refilling; outputs end at any token with probability 1/{round(1 / _STOP_SHARE)}"
    name = f"Sampler, {len(wanted)} ragged outputs: batches of {size.batch} that shrink"
    yield _row(name, interleaved(contenders, size.rounds), "shrinking", 1, note)


def _lora(_: Any, before: Any, size: Size) -> Iterator[Row]:
    """One pass for both branches against two passes."""
    blocks = len(decoder_blocks(before))
    for layers in (range(blocks), range(blocks - max(1, blocks // 4), blocks)):
        after = adapted(before, layers)
        wanted = requests(size, size.batch)
        # The same numbers in tensors of their own: nothing is shared, so that the branches run apart.
        apart = model_of(size.shape)
        contenders: dict[str, Callable[[], object]] = {
            "ours": partial(ours, after, before, wanted, size, size.new // 4),
            "apart": partial(ours, after, apart, wanted, size, size.new // 4),
        }
        note = "the same models, after and before in turn"
        name = f"Sampler, LoRA on {len(layers)} of {blocks} blocks: two passes, batch {size.batch}"
        yield _row(name, interleaved(contenders, size.rounds), "apart", 1, note)


def _speed(times: Mapping[str, Times], tokens: int) -> str:
    return f"{tokens / times['ours'].wall:,.0f} tokens/s"


def _row(name: str, times: dict[str, Times], peer: str, factor: float, note: str) -> Row:
    wall = times["ours"].wall / (factor * times[peer].wall)
    print(f"{name}: {times['ours']} against {factor} x {times[peer]}", file=sys.stderr, flush=True)
    return Row(name, times["ours"].cpu / (factor * times[peer].cpu), f"{note}; wall {wall:.3f}")


def growth(size: Size) -> list[tuple[int, float]]:
    """Samples and CPU seconds of ours."""
    torch.set_num_threads(size.threads)
    after, before = pair_of(size.shape)
    contenders: dict[str, Callable[[], object]] = {
        str(n): partial(ours, after, before, requests(size, n), size, size.new // 8) for n in size.growth
    }
    times = interleaved(contenders, size.rounds)
    return [(n, times[str(n)].cpu) for n in size.growth]
