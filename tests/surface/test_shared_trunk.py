"""After as LoRA on before: one pass for both gives what two passes give."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.conftest import tiny_model
from tests.oracles.sampling import naive_sample
from tests.surface.test_refilling import ragged
from tests.surface.test_sampler import STOPS, drawn

from datablame.models.load import twin
from datablame.surface.sampler.shared_trunk import shared_trunk
from datablame.surface.sampler.tokens import Settings

if TYPE_CHECKING:
    from datablame.models.pair import Pair

IDS = torch.tensor([[1, 2, 50, 60, 3], [4, 9, 8, 7, 70], [5, 5, 6, 1, 2]])

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model: Any, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = {"r": 4, "lora_alpha": 16, "target_modules": LINEARS, "init_lora_weights": False, **options}
        return get_peft_model(model, LoraConfig(**config)).get_base_model().eval().requires_grad_(False)


def pair(layers: list[int] | None = None, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    before = tiny_model(1, layers=4).to(dtype)
    return adapted(twin(before), layers_to_transform=layers), before


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS, **options: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, **options).logits
    return found


@pytest.mark.parametrize("layers", [None, [2, 3], [3], [1]], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_both_models_logits_come_out_of_one_pass(layers: list[int] | None, rows: int) -> None:
    after, before = pair(layers)
    tree = shared_trunk(after, before)
    assert tree is not None
    ids = IDS[:rows]
    both = logits(tree, ids)
    assert torch.allclose(both[::2], logits(after, ids), atol=1e-4)
    assert torch.allclose(both[1::2], logits(before, ids), atol=1e-4)
    assert (both[::2] - both[1::2]).abs().max() > 0.1
    padded = {"attention_mask": torch.tensor([[0, 1, 1, 1, 1]] + [[1] * 5] * (rows - 1))}
    assert torch.allclose(logits(tree, ids, **padded)[::2, 1:], logits(after, ids, **padded)[:, 1:], atol=1e-4)


def test_blocks_below_the_adapter_read_each_row_once() -> None:
    after, before = pair([2, 3])
    tree: Any = shared_trunk(after, before)
    rows: list[int] = []
    for block in tree.model.layers:
        block.mlp.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    logits(tree)
    assert rows == [3, 3, 6, 6]


@pytest.mark.parametrize("layers", [None, [2]], ids=str)
@pytest.mark.parametrize("batch_rows", [4, 100])
def test_samples_are_those_of_the_naive_loop(layers: list[int] | None, batch_rows: int, tiny_pair: "Pair") -> None:
    after, before = pair(layers)
    wanted = ragged(12)
    expected = naive_sample(after, before, wanted, settings=Settings(8), stop_ids=STOPS, vocabulary_size=290)
    options: dict[str, Any] = {"after": after, "before": before, "batch_rows": batch_rows}
    assert drawn(tiny_pair, wanted, Settings(8), **options) == expected
    weighed = drawn(tiny_pair, wanted, Settings(8), alphas=(0.0, -1.0), log_probabilities=True, **options)
    assert [generation[:2] for generation in weighed] == [generation[:2] for generation in expected]
    for generation in weighed:
        assert generation.log_q == pytest.approx((generation.log_p_after, generation.log_p_before), abs=1e-4)


def test_the_trees_given_are_not_changed() -> None:
    after, before = pair()
    start = logits(after), logits(before)
    names = [name for name, _ in after.named_modules()]
    shared_trunk(after, before)
    assert torch.equal(logits(after), start[0])
    assert torch.equal(logits(before), start[1])
    assert [name for name, _ in after.named_modules()] == names


def test_the_shared_trunk_takes_no_memory_of_weights() -> None:
    after, before = pair()
    own = {weight.data_ptr() for weight in (*after.parameters(), *before.parameters())}
    tree: Any = shared_trunk(after, before)
    assert {weight.data_ptr() for weight in tree.parameters()} == own


def test_sixteen_bit_weights_with_a_float32_adapter_part_as_peft_does() -> None:
    after, before = pair(dtype=torch.bfloat16)
    for name, weight in after.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    both = logits(shared_trunk(after, before))
    assert torch.allclose(both[::2].float(), logits(after).float(), atol=0.5)
    assert torch.allclose(both[1::2].float(), logits(before).float(), atol=0.5)


@pytest.mark.parametrize(
    "case", ["other weights", "no adapter", "merged", "two adapters", "weight-decomposed", "head", "embedding"]
)
def test_what_is_not_a_plain_adapter_on_shared_weights_is_not_shared_trunk(case: str, tmp_path: Path) -> None:
    before = tiny_model(1)
    if case == "other weights":
        after = adapted(tiny_model(1))
    elif case == "no adapter":
        after = twin(before)
    elif case == "weight-decomposed":
        after = adapted(twin(before), use_dora=True)
    elif case == "head":
        after = adapted(twin(before), target_modules=["q_proj", "lm_head"])
    elif case == "embedding":
        after = adapted(twin(before), target_modules=["q_proj", "embed_tokens"])
    else:
        from peft import LoraConfig, get_peft_model

        owner = get_peft_model(twin(before), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        if case == "two adapters":
            owner.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        else:
            # Merging would move the weights that both share.
            for module in owner.modules():
                if hasattr(module, "merged_adapters"):
                    module.merged_adapters.append("default")
        after = owner.get_base_model().eval()
    assert shared_trunk(after, before) is None
