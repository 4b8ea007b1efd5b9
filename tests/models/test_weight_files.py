"""Files that are not what they are said to be are named before they are loaded, with field, file and remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.test_adapter_kinds import write_adapter
from tests.pairs import models_of

from datablame.config.schema import ModelRef, Models
from datablame.errors import RequestError
from datablame.models.load import load_model
from datablame.models.pair import preflight
from datablame.models.weight_files import stored_type, weights_hash

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def models(folder: Path, after: str = "after") -> Models:
    return models_of(folder / "before", folder / after)


def refusal(folder: Path, after: str = "after") -> str:
    """What the pair is refused with, in one line."""
    with pytest.raises(RequestError) as caught:
        load_model(preflight(models(folder, after)).models.after)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_a_git_lfs_pointer_is_named(folder: Path, name: str) -> None:
    (folder / "after" / name).write_bytes(POINTER)
    assert refusal(folder) == (
        f"models.after = {folder / 'after'}: {name} is a Git LFS pointer, not the file itself; run git lfs pull there"
    )


def test_a_pointer_to_a_gguf_file_is_named(folder: Path) -> None:
    (folder / "tiny.gguf").write_bytes(POINTER)
    assert "tiny.gguf: tiny.gguf is a Git LFS pointer" in refusal(folder, "tiny.gguf")


def test_an_adapters_pointer_is_named(folder: Path) -> None:
    write_adapter(folder / "before", folder / "adapter", target_modules=["q_proj"])
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(POINTER)
    assert "adapter_model.safetensors is a Git LFS pointer" in refusal(folder, "adapter")


@pytest.mark.parametrize("left", [0, 5, 8, 200, -1])
def test_a_torn_file_is_named_wherever_it_ends(folder: Path, left: int) -> None:
    file = folder / "after" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    said = refusal(folder)
    assert said.startswith(f"models.after = {folder / 'after'}: model.safetensors is torn")
    assert said.endswith("; fetch or save it again")
    assert left != -1 or f"it has {len(whole) - 1} of {len(whole)} bytes" in said


def test_a_file_with_more_than_its_tensors_is_named(folder: Path) -> None:
    file = folder / "after" / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0" * 8)
    assert "model.safetensors is torn" in refusal(folder)


def sharded(folder: Path) -> None:
    """`after` in two files and an index, as save_pretrained writes them."""
    model = load_model(ModelRef(path=str(folder / "after")))
    (folder / "after" / "model.safetensors").unlink()
    model.save_pretrained(folder / "after", max_shard_size="60KB")
    assert (folder / "after" / "model.safetensors.index.json").is_file()


def test_two_sets_of_weights_are_refused_and_one_in_shards_is_served(folder: Path) -> None:
    single = (folder / "after" / "model.safetensors").read_bytes()
    expected = load_model(ModelRef(path=str(folder / "after"))).state_dict()
    sharded(folder)
    loaded = load_model(preflight(models(folder)).models.after).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    (folder / "after" / "model.safetensors").write_bytes(single)
    assert (
        "has two sets of weights, model.safetensors and the files of model.safetensors.index.json; remove the one"
        in (refusal(folder))
    )


def test_a_shard_that_is_missing_or_torn_is_named(folder: Path) -> None:
    sharded(folder)
    (first, *_) = sorted((folder / "after").glob("model-*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    assert f"{first.name} is torn" in refusal(folder)
    first.unlink()
    assert f"lacks {first.name}, which its index of weights names; fetch" in refusal(folder)


def test_a_whole_model_beside_an_adapter_is_refused(folder: Path) -> None:
    adapter = write_adapter(folder / "before", folder / "adapter", target_modules=["q_proj"])
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / "after" / name, adapter / name)
    assert "has the weights of a whole model beside an adapter's; put one of them into" in refusal(folder, "adapter")


def renamed(folder: Path, name: Callable[[str], str], **more: torch.Tensor) -> None:
    """`after` with other names of tensors, and more of them."""
    file = folder / "after" / "model.safetensors"
    save_file({**{name(key): tensor for key, tensor in load_file(file).items()}, **more}, file, {"format": "pt"})


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.", "policy."])
def test_the_prefix_of_a_wrapper_is_named(folder: Path, prefix: str) -> None:
    renamed(folder, lambda name: f"{prefix}{name}")
    assert f"was saved from inside a wrapper: its tensors begin with {prefix}, the first is {prefix}" in refusal(folder)


def test_weights_in_whole_numbers_are_named(folder: Path) -> None:
    file = folder / "after" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    save_file(tensors, file, {"format": "pt"})
    assert "is quantised (unknown), which cannot be compared or traced (model.layers.0.mlp.up_proj.weight" in refusal(
        folder
    )


def test_a_wrapper_inside_the_names_is_named(folder: Path) -> None:
    renamed(folder, lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."))
    assert "its tensors begin with model.layers.0._checkpoint_wrapped_module., the first is model.lay" in refusal(
        folder
    )


def test_a_layer_more_than_the_config_has_is_refused(folder: Path) -> None:
    config = json.loads((folder / "after" / "config.json").read_text())
    (folder / "after" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    said = refusal(folder)
    assert "holds 11 tensors that its config.json leaves no place for, the first is model.layers.1." in said


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.lora_A.default.weight", "model.layers.0.odd.weight"])
def test_a_tensor_of_a_block_that_has_no_place_is_refused(folder: Path, name: str) -> None:
    renamed(folder, str, **{name: torch.ones(4, 4)})
    assert f"holds 1 tensors that its config.json leaves no place for, the first is {name}" in refusal(folder)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "vision_tower.encoder.layers.0.mlp.weight", "score.weight"])
def test_a_tensor_outside_of_the_model_is_kept_in_mind(folder: Path, name: str) -> None:
    renamed(folder, str, **{name: torch.ones(4, 4)})
    assert load_model(models(folder).after).unread == (name,)
    assert load_model(models(folder).before).unread == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors"},
    ],
)
def test_weights_that_cannot_be_dequantised_here_are_named(folder: Path, settings: dict[str, Any]) -> None:
    config = json.loads((folder / "after" / "config.json").read_text())
    (folder / "after" / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    said = refusal(folder)
    assert f"is quantised ({settings['quant_method']}), which cannot be compared or traced (" in said
    assert said.endswith("; give its unquantised weights")


def test_the_stored_type_is_that_of_most_bytes_of_matrices(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(8, 8, dtype=torch.bfloat16), "b": torch.ones(5, 5), "norm": torch.ones(500)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_type([tmp_path / "model.safetensors"]) == "BF16"
    assert stored_type([]) is None
    (tmp_path / "other.safetensors").write_bytes(b"\x05")
    with pytest.raises(ValueError, match=r"other\.safetensors is torn"):
        weights_hash(tmp_path)
