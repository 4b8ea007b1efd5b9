from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.conftest import tiny_model

from datablame.models import likelihood
from datablame.models.chat import Encoded
from datablame.models.likelihood import response_nll, response_positions

EXAMPLES = [Encoded([1, *range(5, 5 + n)], 1 + n // 2) for n in (4, 9, 2, 13, 7)]


@pytest.fixture
def model() -> Any:
    return tiny_model(seed=5).requires_grad_(False)


def plain(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL of every response token from whole logits of one example at a time, and the gradient of a weighted sum."""
    nll = []
    for example in EXAMPLES:
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].float()
        targets = torch.tensor(example.ids[example.prompt_tokens :])
        nll.append(F.cross_entropy(logits[example.prompt_tokens - 1 : -1], targets, reduction="none"))
    return torch.cat(nll), gradient(model, torch.cat(nll))


def gradient(model: Any, nll: torch.Tensor) -> torch.Tensor:
    weight = model.model.layers[0].mlp.up_proj.weight
    (found,) = torch.autograd.grad((nll * torch.linspace(0.5, 2, len(nll))).sum(), [weight])
    return found


def split(model: Any) -> torch.Tensor:
    positions = response_positions(EXAMPLES, torch.device("cpu"))
    return response_nll(model, positions)


@pytest.mark.parametrize("positions", [1, 3, 1000])
def test_nll_and_gradient_are_those_of_whole_logits(
    model: Any, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "_BUFFERED_LOGITS", {"cpu": positions * model.config.vocab_size})
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    expected, slope = plain(model)
    found = split(model)
    assert "SplitNLL" in str(found.grad_fn)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(model, found), slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))


def test_an_unlikely_token_has_its_exact_nll(model: Any) -> None:
    """exp(-200) is zero in float32; its logarithm must not be taken."""
    with torch.no_grad():
        model.lm_head.weight.mul_(300)
    expected = plain_nll(model)
    assert expected.max() > 120
    torch.testing.assert_close(split(model), expected, rtol=1e-5, atol=1e-4)


def plain_nll(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([e.ids])).logits[0].double() for e in EXAMPLES]
    return torch.cat(
        [
            F.cross_entropy(
                each[e.prompt_tokens - 1 : -1], torch.tensor(e.ids[e.prompt_tokens :]), reduction="none"
            ).float()
            for e, each in zip(EXAMPLES, logits, strict=True)
        ]
    )


def soft_cap(_: Any, __: Any, output: Any) -> Any:
    output.logits = 3 * torch.tanh(output.logits / 3)
    return output


def trainable_head(model: Any) -> None:
    model.lm_head.weight.requires_grad_(True)


def capped(model: Any) -> None:
    model.register_forward_hook(soft_cap)


def with_bias(model: Any) -> None:
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size), requires_grad=False)


@pytest.mark.parametrize("change", [trainable_head, capped, with_bias])
def test_whatever_the_model_does_to_its_logits_still_happens(model: Any, change: Callable[[Any], None]) -> None:
    change(model)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    expected, slope = plain(model)
    for _ in range(2):
        found = split(model)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient(model, found), slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))
    assert not model.lm_head._forward_pre_hooks
    if change is trainable_head:
        split(model).sum().backward()
        assert model.lm_head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_give_nll_in_float32(model: Any, dtype: torch.dtype) -> None:
    expected = plain_nll(model)
    found = split(model.to(dtype))
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
