"""The kernel of LESS: gradients of LoRA's factors and steps of Adam, exact against autograd and torch's own Adam."""

from typing import Any

import pytest
import torch
from tests.attribute.test_per_example import documents
from tests.attribute.test_preference_pairs import mixed
from tests.conftest import tiny_model
from tests.oracles.trajectory import Factors, naive_adam_step, naive_lora_gradient
from torch import Tensor

from datablame.attribute.kernels.lora_gradients import (
    AdamMoments,
    AdamSettings,
    adam_cosines,
    by_side,
    lora_directions,
    lora_projection,
)
from datablame.models.blocks import decoder_blocks
from datablame.models.lora import SCALE, Adapter, adapted, factors_of, set_factors

STEPS, SETTINGS = 7, AdamSettings(0.9, 0.95, 1e-6)


def noise(factors: Factors, seed: int, scale: float) -> Factors:
    random = torch.Generator().manual_seed(seed)
    return {name: tuple(scale * torch.randn(t.shape, generator=random) for t in pair) for name, pair in factors.items()}  # type: ignore[misc]


def moments(factors: Factors) -> AdamMoments:
    squares = {name: (a**2, b**2) for name, (a, b) in noise(factors, 3, 0.02).items()}
    return AdamMoments(noise(factors, 2, 0.01), squares, STEPS)


def found(adapter: Adapter, pool: Any, queries: Any, size: int | None, batch_tokens: int) -> Tensor:
    blocks = range(len(decoder_blocks(adapter.owner.get_base_model())))
    projection, state = lora_projection(adapter, size), moments(factors_of(adapter))
    towards = lora_directions(adapter, queries, projection, blocks)
    return adam_cosines(adapter, pool, towards, state, SETTINGS, projection, blocks, batch_tokens)


def naive(model: Any, factors: Factors, projection: Any, pool: Any, queries: Any) -> Tensor:
    """Cosines with the mean of unit gradients, one document and one query at a time."""
    names = [*by_side(factors)]

    def flat(parts: list[Tensor]) -> Tensor:
        sides = [
            projection.get(name, (torch.eye(p.shape[0]), torch.eye(p.shape[1])))
            for name, p in zip(names, parts, strict=True)
        ]
        return torch.cat([(r.T.double() @ p @ c.double()).flatten() for p, (r, c) in zip(parts, sides, strict=True)])

    state = moments(factors)
    held = list(zip(by_side(state.first).values(), by_side(state.second).values(), strict=True))
    betas = SETTINGS.beta1, SETTINGS.beta2
    steps = []
    for document in pool:
        gradients = naive_lora_gradient(model, document, factors, SCALE)
        parts = [
            naive_adam_step(g, *both, STEPS, betas, SETTINGS.epsilon) for g, both in zip(gradients, held, strict=True)
        ]
        steps.append(flat(parts))
    means = []
    for own in queries:
        units = [u / u.norm() for u in (flat(naive_lora_gradient(model, query, factors, SCALE)) for query in own)]
        means.append(torch.stack(units).mean(0))
    rows = torch.stack(steps)
    cosines: Tensor = (rows / rows.norm(dim=1, keepdim=True)) @ torch.stack(means).T
    return cosines


@pytest.mark.parametrize(("size", "batch_tokens"), [(None, 1), (None, 10_000), (3, 60)])
def test_cosines_are_those_of_autograd_and_of_torchs_adam_whatever_the_batch(
    size: int | None, batch_tokens: int
) -> None:
    model, pool, queries = (
        tiny_model(3).requires_grad_(False),
        mixed()[:2] + mixed()[-3:],
        [documents(2, seed=1), documents(1, seed=2)],
    )
    with adapted(model, 2, None, 1) as adapter:
        set_factors(adapter, noise(factors_of(adapter), 1, 0.3))
        factors = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in factors_of(adapter).items()}
        cosines = found(adapter, pool, queries, size, batch_tokens)
        backwards = found(adapter, pool[::-1], queries, size, 100).flip(0)
        projection = lora_projection(adapter, size)
    expected = naive(model, factors, projection, pool, queries)
    torch.testing.assert_close(cosines, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backwards, cosines, rtol=1e-4, atol=1e-5)


def test_a_document_that_moves_nothing_scores_0() -> None:
    model, pool = tiny_model(3).requires_grad_(False), documents(2)
    with adapted(model, 2, None, 1) as adapter:
        zeros = {name: (torch.zeros_like(a), torch.zeros_like(b)) for name, (a, b) in factors_of(adapter).items()}
        set_factors(adapter, zeros)
        blocks = range(len(decoder_blocks(model)))
        towards = lora_directions(adapter, [pool], {}, blocks)
        state = AdamMoments(zeros, zeros, STEPS)
        cosines = adam_cosines(adapter, pool, towards, state, SETTINGS, {}, blocks, 100)
    assert cosines.tolist() == [[0.0], [0.0]]
