"""A config.json tells how many weights a checkpoint has, to the last one."""

import json
from pathlib import Path
from typing import Any

import pytest

from datablame.models import blocks
from datablame.plan.shapes import KNOWN, activation_layer, find, middle_blocks, shape_of
from datablame.study.schema import ModelRef

FAMILIES = ("olmo2", "olmo", "llama", "mistral", "qwen2", "qwen3")


def config_of(family: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 301,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
    }
    return AutoConfig.for_model(family, **(sizes | changes))


def counted(config: Any) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_of_a_saved_config_are_counted_exactly(family: str, tied: bool, tmp_path: Path) -> None:
    config = config_of(family, tie_word_embeddings=tied)
    config.save_pretrained(tmp_path)
    found = find(ModelRef(path=str(tmp_path)))
    assert found is not None
    assert found.shape.counted
    assert found.shape.parameters == counted(config)


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}, {"head_dim": 16}])
def test_biases_and_wide_heads_are_counted(changes: dict[str, Any]) -> None:
    config = config_of("llama", **changes)
    shape = shape_of(config.to_dict())
    assert shape is not None
    assert shape.parameters == counted(config)


@pytest.mark.parametrize("name", ["allenai/OLMo-2-0425-1B-SFT", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_published_shapes_have_the_published_sizes(name: str) -> None:
    from transformers import LlamaConfig, Olmo2Config

    shape = KNOWN[name]
    kind = Olmo2Config if shape.family == "olmo2" else LlamaConfig
    config = kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=shape.tied,
    )
    assert shape.parameters == counted(config)
    assert shape.parameters == {"olmo2": 1_484_916_736, "llama": 134_515_008}[shape.family]


def test_linear_layers_are_those_of_a_block() -> None:
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    config = config_of("olmo2")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    block = blocks.decoder_blocks(model)[0]
    shape = shape_of(config.to_dict())
    assert shape is not None
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    assert sorted(shape.linears) == sorted((linear.in_features, linear.out_features) for linear in linears)


def test_an_adapter_has_the_shape_of_its_base(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    assert find(ModelRef(path=str(tmp_path / "adapter"))) == find(ModelRef(path=str(tmp_path / "base")))


def test_a_subfolder_is_looked_into(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path / "inner")
    assert find(ModelRef(path=str(tmp_path))) is None
    assert find(ModelRef(path=str(tmp_path), subfolder="inner")) is not None


def test_the_hub_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--model"
    commit = "0" * 40
    config_of("llama").save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    found = find(ModelRef(path="somebody/model"))
    assert found is not None
    assert (found.source, found.shape.layers) == ("the hub's cache", 3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "llama", "hidden_size": "many"}', "\x00"])
def test_a_config_that_says_nothing_is_no_shape(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert find(ModelRef(path=str(tmp_path))) is None


def test_another_family_is_said_to_be_a_guess() -> None:
    shape = shape_of(config_of("llama").to_dict() | {"model_type": "something-new"})
    assert shape is not None
    assert not shape.counted


@pytest.mark.parametrize("layers", [1, 2, 4, 7, 12, 16, 24, 30, 48])
def test_middle_blocks_are_those_of_the_loaded_models(layers: int) -> None:
    assert list(middle_blocks(layers)) == blocks.middle_blocks(layers)
    assert activation_layer(layers) == blocks.activation_layer(layers)
