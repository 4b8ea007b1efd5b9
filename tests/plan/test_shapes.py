"""A config.json tells how many weights a checkpoint has, to the last one."""

import json
from pathlib import Path
from typing import Any

import pytest

from datablame.config.schema import ModelRef
from datablame.plan.subject import PUBLISHED, known_shape, shape_of


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


def loaded(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("olmo2", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16}),
        ("qwen3", {"head_dim": 16}),
        ("gemma2", {"head_dim": 16}),
    ],
)
def test_a_saved_config_says_what_its_loaded_model_is(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from torch import nn

    config = config_of(family, **changes)
    config.save_pretrained(tmp_path)
    known = known_shape(ModelRef(path=str(tmp_path)))
    assert known is not None
    shape, model = known.shape, loaded(config).eval()
    assert known.source == "its config.json"
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    linears = [layer for layer in model.model.layers[0].modules() if isinstance(layer, nn.Linear)]
    assert shape.linears == tuple((layer.in_features, layer.out_features) for layer in linears)
    with torch.no_grad():
        keys = model(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values.layers[0].keys
    assert shape.key_value_width == keys.shape[1] * keys.shape[3]
    assert (shape.layers, shape.hidden, shape.intermediate, shape.vocabulary, shape.context) == (3, 48, 88, 301, 64)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("allenai/OLMo-2-0425-1B-SFT", 1_484_916_736), ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008)],
)
def test_the_published_shapes_have_the_published_sizes(name: str, parameters: int) -> None:
    shape = shape_of(PUBLISHED[name])
    assert shape is not None
    assert shape.parameters == parameters


def test_an_adapter_has_the_shape_of_its_base(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    base = known_shape(ModelRef(path=str(tmp_path / "base")))
    assert base is not None
    assert known_shape(ModelRef(path=str(tmp_path / "adapter"))) == base


def test_a_subfolder_is_looked_into(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path / "inner")
    assert known_shape(ModelRef(path=str(tmp_path))) is None
    assert known_shape(ModelRef(path=str(tmp_path), subfolder="inner")) is not None


def test_the_hub_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--model"
    commit = "0" * 40
    config_of("llama").save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    known = known_shape(ModelRef(path="somebody/model"))
    assert known is not None
    assert (known.source, known.shape.layers) == ("the hub's cache", 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model_type": "llama", "hidden_size": "many"}',
        '{"model_type": 7}',
        '{"model_type": "llama", "hidden_size": 48, "num_attention_heads": 0}',
        '{"model_type": "something-new", "hidden_size": 48}',
        "\x00",
    ],
)
def test_a_config_that_says_nothing_that_is_known_is_no_shape(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert known_shape(ModelRef(path=str(tmp_path))) is None
