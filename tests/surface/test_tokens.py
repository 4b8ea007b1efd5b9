"""Tokens sampled from a vocabulary of many blocks are those of the plain sum."""

import math

import numpy as np
import pytest
import torch
from tests.oracles.sampling import _log_softmax, _token

from datablame.surface.sampler import tokens
from datablame.surface.sampler.tokens import Settings, sample_token, token_log_probabilities

VOCABULARY = 3000
KINDS = (
    Settings(1),
    Settings(1, temperature=0.0),
    Settings(1, temperature=0.6),
    Settings(1, top_p=0.3),
    Settings(1, top_p=0.999),
    Settings(1, top_k=40),
    Settings(1, top_k=700, top_p=0.9),
    Settings(1, min_p=0.05),
    Settings(1, plausibility=0.02, top_p=0.95),
)


def logits(rows: int, spread: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("spread", [0.3, 4.0])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_a_large_vocabulary_is_sampled_from_as_the_naive_loop_does(
    settings: Settings, spread: float, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat logits make top-p look at most of the vocabulary, peaked ones at a few tokens."""
    monkeypatch.setitem(tokens._BUFFER_BYTES, "cpu", rows_at_once * 4 * 3072)
    rows = 7
    a, b = logits(rows, spread), logits(rows, spread, seed=1)
    alpha = torch.linspace(-1, 2, rows)
    uniform = torch.linspace(0.003, 0.997, rows, dtype=torch.float64)
    expected = [
        _token(row_a, row_a + float(weight) * (row_a - row_b), float(u), settings)
        for row_a, row_b, weight, u in zip(a.double().numpy(), b.double().numpy(), alpha, uniform, strict=True)
    ]
    assert sample_token(a, b, alpha, uniform, settings).tolist() == expected


def test_every_token_gets_its_share_of_the_uniforms() -> None:
    p = torch.rand(1, 700, generator=torch.Generator().manual_seed(3)) + 0.1
    p /= p.sum()
    ends = p.double().cumsum(-1)[0]
    uniform = torch.cat([torch.zeros(1, dtype=torch.float64), (ends[:-1] + ends[1:]) / 2])
    chosen = sample_token(p.log().expand(700, -1), None, torch.zeros(700), uniform, Settings(1))
    assert chosen.tolist() == list(range(700))


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_a_token_without_probability_is_never_chosen(uniform: float) -> None:
    a = torch.full((1, VOCABULARY), -math.inf)
    a[0, [300, 301, 2000]] = 1.0
    found = sample_token(a, None, torch.zeros(1), torch.tensor([uniform], dtype=torch.float64), Settings(1))
    assert found.item() in (300, 301, 2000)
    assert found.item() == {0.0: 300, 0.5: 301}.get(uniform, 2000)


def test_logits_are_left_as_they_were() -> None:
    a, b = logits(4, 1.0), logits(4, 1.0, seed=1)
    copies = a.clone(), b.clone()
    uniform = torch.full((4,), 0.4, dtype=torch.float64)
    chosen = sample_token(a, b, torch.ones(4), uniform, KINDS[-1])
    token_log_probabilities(a, b, chosen, (0.0, 2.0))
    assert torch.equal(a, copies[0])
    assert torch.equal(b, copies[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_the_mixture(dtype: torch.dtype) -> None:
    a, b = (logits(5, 3.0, seed).to(dtype) for seed in (0, 1))
    chosen = torch.tensor([0, 255, 256, 2000, 2999])
    x, y = a.double().numpy(), b.double().numpy()
    expected = [
        [_log_softmax(each)[token] for each in (row, other, row, row + 2 * (row - other), other)]
        for row, other, token in zip(x, y, chosen.tolist(), strict=True)
    ]
    found = token_log_probabilities(a, b, chosen, (0.0, 2.0, -1.0))
    assert np.allclose(found.numpy(), expected, atol=1e-5)
