"""Adam's state as Trainer, torch and safetensors have it, given back by name; what is none, or another model's."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import tiny_model

from datablame.errors import RequestError
from datablame.models.optimizer import adam_state, product_scales, second_moments
from datablame.models.products import products


def trained(model: Any, groups: list[Any]) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(groups, lr=1e-9, betas=(0.9, 0.999), eps=1e-7)
    noise = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=noise)
        optimizer.step()
    return optimizer


def as_trainer_groups(model: Any) -> list[Any]:
    from transformers import Trainer

    decayed = Trainer.get_decay_parameter_names(None, model)
    every = list(model.named_parameters())
    return [{"params": [p for n, p in every if (n in decayed) is decays]} for decays in (True, False)]


@pytest.mark.parametrize("kind", ["trainer", "one group", "named"])
def test_every_parameter_gets_its_own_second_moment(kind: str, tmp_path: Path) -> None:
    model = tiny_model(1)
    groups = {
        "trainer": as_trainer_groups(model),
        "one group": [{"params": list(model.parameters())}],
        "named": [{"params": list(model.named_parameters())[::-1]}],
    }[kind]
    optimizer = trained(model, groups)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    state = adam_state(str(tmp_path / "optimizer.pt"), model, "after")
    assert state.epsilon == 1e-7
    assert {*state.moments} == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(state.moments[name], optimizer.state[parameter]["exp_avg_sq"])
    save_file(second_moments(optimizer, model), tmp_path / "v.safetensors")
    other = adam_state(str(tmp_path / "v.safetensors"), model, "after")
    scales, others = product_scales(state, model, [1]), product_scales(other, model, [1])
    assert {*scales} == {*products(model, [1])}
    for name, scale in scales.items():
        torch.testing.assert_close(others[name], scale, rtol=1e-4, atol=0)


def test_a_transposed_weight_is_turned() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16))
    optimizer = trained(model, [{"params": list(model.parameters())}])
    from datablame.models.optimizer import AdamState

    state = AdamState(second_moments(optimizer, model), {}, 0.0)
    found = product_scales(state, model, [0])["0.attn.c_attn"]
    weight = model.transformer.h[0].attn.c_attn.weight
    assert found.shape == (24, 8)
    torch.testing.assert_close(found, second_moments(optimizer, model)["transformer.h.0.attn.c_attn.weight"].sqrt().T)
    assert weight.shape == (8, 24)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_what_is_no_state_of_this_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = tiny_model(1), tmp_path / "optimizer.pt"
    given = str(path)
    with pytest.raises(RequestError, match=r"^models\.optimizer = .* is no file; give the optimizer\.pt"):
        adam_state(given, model, "after")
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RequestError, match="cannot be read as the state of Adam"):
        adam_state(given, model, "after")
    torch.save(Evil(), path)
    with pytest.raises(RequestError, match="cannot be read as the state of Adam"):
        adam_state(given, model, "after")
    assert capsys.readouterr().out == ""
    torch.save(torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), path)
    with pytest.raises(RequestError, match=r"models\.optimizer = "):
        adam_state(given, model, "after")
    for other, misfit in ((tiny_model(1, layers=3), "its groups have"), (tiny_model(1, hidden=64), "is .* x 64 in it")):
        torch.save(trained(other, as_trainer_groups(other)).state_dict(), path)
        with pytest.raises(RequestError, match=rf"is not of models\.after = after: .*{misfit}.*; give the optimizer"):
            adam_state(given, model, "after")
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "v.safetensors")
    with pytest.raises(RequestError, match=r"it has head\.weight, which is no parameter there"):
        adam_state(str(tmp_path / "v.safetensors"), model, "after")
    save_file({}, tmp_path / "v.safetensors")
    with pytest.raises(RequestError, match=r"it has nothing of model\.layers\.0"):
        adam_state(str(tmp_path / "v.safetensors"), model, "after")


def test_moments_that_are_negative_or_not_finite_are_refused(tmp_path: Path) -> None:
    model, path = tiny_model(1), tmp_path / "v.safetensors"
    for value in (-1.0, float("nan"), float("inf")):
        save_file({name: torch.full(p.shape, value) for name, p in model.named_parameters()}, path)
        with pytest.raises(RequestError, match="are negative or not finite"):
            adam_state(str(path), model, "after")
