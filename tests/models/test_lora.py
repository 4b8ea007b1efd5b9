import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from datablame.errors import RequestError
from datablame.models.chat import Encoded
from datablame.models.lora import adapted, adapter_norm, save_adapter, targets_of
from datablame.models.pair import Pair
from datablame.models.training import Recipe, train

IDS = torch.arange(4, 40).reshape(3, 12)
RECIPE = Recipe(steps=4, batch=2, learning_rate=1e-2, warmup_steps=1)
EXAMPLES = [Encoded(list(range(4, 24)), 5), Encoded(list(range(60, 74)), 3)]
ORDER = [[0, 1]] * RECIPE.steps


@pytest.fixture
def model(tiny_pair: Pair) -> Any:
    return copy.deepcopy(tiny_pair.after)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(IDS).logits
    return result


def test_the_base_and_before_are_bit_for_bit_the_same_after_an_arm(model: Any, tiny_pair: Pair) -> None:
    start, before = logits(model), logits(tiny_pair.before)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for key in (1, 2):
        with adapted(model, 4, None, key) as adapter:
            assert torch.equal(logits(model), start)
            train(model, EXAMPLES, ORDER, RECIPE)
            assert adapter_norm(adapter) > 0
            assert not torch.allclose(logits(model), start, atol=1e-3)
            assert torch.equal(logits(tiny_pair.before), before)
        assert torch.equal(logits(model), start)
        assert list(model.state_dict()) == list(weights)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_base_is_the_same_after_an_arm_that_failed(model: Any) -> None:
    start = logits(model)
    with pytest.raises(IndexError), adapted(model, 4, None, 1):
        train(model, EXAMPLES, [*ORDER, [2]], RECIPE)
    assert torch.equal(logits(model), start)


def test_an_adapter_depends_on_its_key_and_leaves_the_global_generator_alone(model: Any) -> None:
    def first_factors(key: int) -> list[torch.Tensor]:
        with adapted(model, 4, None, key) as adapter:
            return [p.detach().clone() for name, p in adapter.owner.named_parameters() if "lora_A" in name]

    state = torch.random.get_rng_state()
    one, again, other = first_factors(1), first_factors(1), first_factors(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_linear_of_the_chosen_blocks_is_adapted_and_nothing_else(model: Any) -> None:
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    every = targets_of(model, None).modules
    assert {name.rpartition(".")[2] for name in every} == kinds
    assert len(every) == 2 * len(kinds)
    with adapted(model, 2, (1,), 0) as adapter:
        assert adapter.targets.modules == tuple(name for name in every if ".layers.1." in name)
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert len(trainable) == 2 * len(kinds)
        assert all(".layers.1." in name and "lora_" in name for name in trainable)


def test_blocks_whose_numbers_begin_alike_are_told_apart() -> None:
    model = tiny_model(seed=0, layers=12)
    wanted = targets_of(model, (0, 1, 10)).modules
    with adapted(model, 2, (0, 1, 10), 0) as adapter:
        names = [name for name, _ in adapter.owner.named_parameters() if ".lora_A." in name]
        assert {name.removeprefix("base_model.model.").partition(".lora_A.")[0] for name in names} == set(wanted)
        assert len(names) == len(wanted) == 21


def test_a_model_without_linears_is_refused() -> None:
    model = tiny_model(seed=0, layers=1)
    model.model.layers[0].forward = lambda hidden, **_: hidden
    with pytest.raises(RequestError, match="decoder block 0 of Olmo2ForCausalLM has no Linear layer to trace"):
        targets_of(model, None)


def test_the_norm_is_that_of_the_weights_change_and_the_file_holds_the_factors(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with adapted(model, 4, (0,), 1) as adapter:
        train(model, EXAMPLES, ORDER, RECIPE)
        norm = adapter_norm(adapter)
        save_adapter(adapter, tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (about["lora_alpha"], about["r"]) == (8, 4)
    assert about["target_modules"] == sorted(targets_of(model, (0,)).modules)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    changes = [2 * tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for name in tensors if "lora_A" in name]
    assert len(changes) == 7
    assert norm == pytest.approx(float(torch.cat([change.flatten() for change in changes]).norm()), rel=1e-5)


def test_an_adapter_is_the_same_bytes_every_time_and_names_no_path(
    model: Any, tiny_pair_folder: Path, tmp_path: Path
) -> None:
    model.name_or_path = str(tiny_pair_folder / "after")
    with adapted(model, 4, None, 1) as adapter:
        for name in ("one", "two"):
            save_adapter(adapter, tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert model.name_or_path not in (tmp_path / "one/adapter_config.json").read_text()


def test_nothing_is_said_on_the_console(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("peft").setLevel(logging.ERROR)
    with adapted(model, 4, None, 1):
        pass
    assert capsys.readouterr() == ("", "")
