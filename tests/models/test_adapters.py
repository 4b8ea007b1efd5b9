import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.pairs import loaded

from datablame.config.schema import ModelRef
from datablame.errors import RequestError
from datablame.models.load import load_model, twin
from datablame.models.lora import adapted

IDS = torch.tensor([[1, 2, 50, 60, 3], [4, 9, 8, 7, 70]])


@pytest.fixture(scope="module")
def adapter(tiny_pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on the before model, as peft saves it, with the tokenizer beside it."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    base = load_model(ModelRef(path=str(tiny_pair_folder / "before")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        owner = get_peft_model(
            base, LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        )
    owner.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_pair_folder / "before" / name, folder / name)
    return folder


@pytest.fixture
def spoiled(adapter: Path, tmp_path: Path) -> Path:
    """An adapter whose files a test may spoil."""
    return Path(shutil.copytree(adapter, tmp_path / "spoiled"))


def edit(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pair_of(tiny_pair_folder: Path, adapter: Path, before: str = "before") -> Any:
    return loaded(tiny_pair_folder / before, adapter)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_one_set_of_weights_serves_both(tiny_pair_folder: Path, adapter: Path) -> None:
    pair = pair_of(tiny_pair_folder, adapter)
    ours = {parameter.data_ptr() for parameter in pair.before.parameters()}
    theirs = {name: parameter.data_ptr() for name, parameter in pair.after.named_parameters()}
    assert {name for name, place in theirs.items() if place not in ours} == {n for n in theirs if "lora_" in n}
    assert ours <= set(theirs.values())
    assert not any(parameter.requires_grad for parameter in pair.after.parameters())


def test_a_twin_shares_every_tensor_and_no_module(tiny_pair_folder: Path) -> None:
    model = load_model(ModelRef(path=str(tiny_pair_folder / "before")))
    other, start = twin(model), logits(model)
    assert {id(p) for p in model.parameters()} == {id(p) for p in other.parameters()}
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}
    with adapted(other, 4, None, key=1) as arm:
        for name, parameter in arm.owner.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
        assert not torch.equal(logits(other), start)
        assert torch.equal(logits(model), start)
        assert not any("lora" in name for name, _ in model.named_modules())
    assert torch.equal(logits(other), start)


def test_an_adapter_whose_base_differs_is_refused(tiny_pair_folder: Path, adapter: Path) -> None:
    before = tiny_pair_folder / "before"
    with pytest.raises(RequestError) as refusal:
        pair_of(tiny_pair_folder, adapter, before="after")
    assert str(refusal.value) == (
        f"models.after = {adapter} is an adapter whose base differs: it was trained on {before}, and models.before is "
        f"{tiny_pair_folder / 'after'}; set models.before to its base, or correct base_model_name_or_path in its "
        "adapter_config.json where that has moved"
    )


def test_a_base_of_the_same_weights_in_another_folder_is_the_same_base(
    tiny_pair_folder: Path, adapter: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_pair_folder / "before", tmp_path / "moved")
    loaded(moved, adapter)


def test_a_base_that_is_gone_is_refused(tiny_pair_folder: Path, spoiled: Path) -> None:
    edit(spoiled, base_model_name_or_path="/gone/base")
    with pytest.raises(RequestError, match=r"whose base differs: it was trained on /gone/base"):
        pair_of(tiny_pair_folder, spoiled)
    edit(spoiled, base_model_name_or_path=None)
    with pytest.raises(RequestError, match=r"is an adapter that names no base; write base_model_name_or_path into"):
        pair_of(tiny_pair_folder, spoiled)


def test_tensors_that_the_adapter_lacks_or_that_have_no_place_are_named(tiny_pair_folder: Path, spoiled: Path) -> None:
    path = spoiled / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(RequestError, match=rf"lacks 1 tensors, the first is {name}; give the base it was trained on"):
        pair_of(tiny_pair_folder, spoiled)
    save_file({**tensors, name.replace("layers.1", "layers.7"): tensors[name].clone()}, path)
    with pytest.raises(RequestError, match=r"holds unknown 1 tensors, the first is .*\.layers\.7"):
        pair_of(tiny_pair_folder, spoiled)
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, path)
    with pytest.raises(RequestError, match=r"does not fit its base \(.*\); give the base it was trained on"):
        pair_of(tiny_pair_folder, spoiled)


def test_what_is_no_lora_in_safetensors_is_refused(tiny_pair_folder: Path, spoiled: Path) -> None:
    (spoiled / "adapter_model.safetensors").rename(spoiled / "adapter_model.bin")
    with pytest.raises(RequestError, match=r"has adapter_model\.bin, which is pickled and not opened; save"):
        pair_of(tiny_pair_folder, spoiled)
    edit(spoiled, peft_type="LOHA")
    with pytest.raises(RequestError, match="is an adapter of the kind LOHA; only LoRA can be loaded"):
        pair_of(tiny_pair_folder, spoiled)
    (spoiled / "adapter_config.json").write_text("{")
    with pytest.raises(RequestError, match=r"adapter_config\.json is not valid JSON"):
        pair_of(tiny_pair_folder, spoiled)


def test_an_adapter_without_a_tokenizer_has_its_bases(tiny_pair_folder: Path, spoiled: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (spoiled / name).unlink()
    assert pair_of(tiny_pair_folder, spoiled).vocabulary_size == 290
