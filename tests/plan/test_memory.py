"""The estimates' formulas against real tensors of small models."""

from collections.abc import Callable
from typing import Any

import pytest

from datablame.plan.memory import cache_bytes, lora_weights, saved_bytes
from datablame.plan.subject import Shape, shape_of


def model_of(kind: str, *, layers: int = 3, key_value_heads: int = 2, dtype: str = "float32") -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

    config_kind, model_kind = {"olmo2": (Olmo2Config, Olmo2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    config = config_kind(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        attn_implementation="sdpa",
    )
    return model_kind(config).to(getattr(torch, dtype)).eval().requires_grad_(False)


def shape(model: Any) -> Shape:
    counted = shape_of(model.config.to_dict())
    assert counted is not None
    return counted


@pytest.mark.parametrize("kind", ["olmo2", "llama"])
@pytest.mark.parametrize("key_value_heads", [2, 4])
@pytest.mark.parametrize(("dtype", "number_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_the_cache_is_as_large_as_a_real_one(kind: str, key_value_heads: int, dtype: str, number_bytes: int) -> None:
    import torch
    from transformers import DynamicCache

    model = model_of(kind, key_value_heads=key_value_heads, dtype=dtype)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(5, 11, dtype=torch.long), use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    layers = cache.layers
    real = sum(states.nbytes for layer in layers for states in (layer.keys, layer.values))
    assert cache_bytes(shape(model), rows=5, tokens=11, number_bytes=number_bytes) == real


def test_the_sampler_makes_room_for_what_is_estimated(tiny_pair: Any) -> None:
    import torch

    from datablame.surface.sampler.decoder import Prompts, RingDecoder

    model, prompt, rows, steps = tiny_pair.after, (1, 40, 41, 42, 43), 6, 9
    with torch.inference_mode():
        decoder = RingDecoder(Prompts(model, [prompt], rows, 100), rows, steps)
        every = torch.arange(rows)
        decoder.add_rows([0] * rows, every, every, rows)
    layers = decoder._cache.layers
    real = sum(states.nbytes for layer in layers for states in (layer.keys, layer.values))
    assert cache_bytes(shape(model), rows, len(prompt) + steps - 1, 4) == real


@pytest.mark.parametrize("kind", ["olmo2", "llama"])
def test_the_adapters_weights_are_counted_exactly(kind: str) -> None:
    from datablame.models.lora import adapted

    model = model_of(kind)
    for layers in (None, (1, 2)):
        with adapted(model, 8, layers, key=1) as adapter:
            real = sum(weight.numel() for weight in adapter.owner.parameters() if weight.requires_grad)
        assert lora_weights(shape(model), 8, 3 if layers is None else 2) == real


def saved_by(model: Any, run: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for backward, weights aside, each storage once."""
    import torch

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    size = sum(int(storage.nbytes()) for storage in kept.values())
    del output
    return size


@pytest.mark.parametrize("kind", ["olmo2", "llama"])
@pytest.mark.parametrize(("dtype", "number_bytes"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
@pytest.mark.parametrize("lora", [False, True])
def test_a_block_keeps_no_more_for_backward_than_is_estimated(
    kind: str, dtype: str, number_bytes: int, lora: bool
) -> None:
    import torch

    from datablame.models.lora import adapted

    tokens = 32

    def kept(layers: int) -> int:
        model = model_of(kind, layers=layers, dtype=dtype)
        inputs = torch.randn(1, tokens, 64, dtype=getattr(torch, dtype), requires_grad=not lora)
        if lora:
            with adapted(model, 8, None, key=1):
                return saved_by(model, lambda: model.model(inputs_embeds=inputs, use_cache=False))
        return saved_by(model, lambda: model.model(inputs_embeds=inputs, use_cache=False))

    # Two depths: what is kept outside the blocks falls out.
    real = (kept(4) - kept(2)) / 2 / tokens
    model = model_of(kind)
    estimated = saved_bytes(shape(model), number_bytes, lora=lora)
    small = lora and 8 * 7 * 4
    assert real <= estimated + small
    assert estimated <= (1.1 if kind == "olmo2" else 1.5) * real
