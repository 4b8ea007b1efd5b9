from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attribute.test_per_example import BLOCKS, built, documents, olmo2
from tests.attribute.test_preference_pairs import mixed

from datablame.attribute.evidence.gradients import evenly_spaced, read_or_made
from datablame.attribute.kernels.hooks import mean_hidden
from datablame.attribute.kernels.per_example import (
    Projected,
    Similarities,
    Sketch,
    agreement_with_exact,
    compared,
    directions,
    index_key,
    projected,
    projected_directions,
    projection_of,
    similarities,
    weights_digest,
)
from datablame.models.chat import Encoded

QUERIES = [documents(3, seed=1), documents(2, seed=2)]
WIDE = 10_000
"""No side of a layer is wider, so that nothing is projected away."""


def through(model: Any, pool: Any, size: int, batch_tokens: int = 200) -> Similarities:
    projection = projection_of(model, BLOCKS, size)
    towards = projected_directions(directions(model, QUERIES, BLOCKS), projection)
    return compared(projected(model, pool, projection, BLOCKS, batch_tokens, 2), towards)


def cosines(found: Similarities) -> torch.Tensor:
    return found.dots / found.norms[:, None]


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_a_projection_that_keeps_everything_is_exact_up_to_its_16_bits(batch_tokens: int) -> None:
    model, pool = built(olmo2), mixed()
    exact = similarities(model, pool, directions(model, QUERIES, BLOCKS), BLOCKS, 100)
    found = through(model, pool, WIDE, batch_tokens)
    torch.testing.assert_close(cosines(found), cosines(exact), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.norms, exact.norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.losses, exact.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.states, mean_hidden(model, pool, 2, 100), rtol=1e-4, atol=1e-5)


def test_the_error_of_a_cosine_is_as_large_as_said() -> None:
    """A standard error of about 1 / (p sqrt(L)), so that a projection twice as wide halves it."""
    model, pool = built(olmo2), documents(40)
    exact = cosines(similarities(model, pool, directions(model, QUERIES, BLOCKS), BLOCKS, 500))
    errors = {size: (cosines(through(model, pool, size, 500)) - exact).std() for size in (4, 8, 16)}
    for size, error in errors.items():
        assert 0.3 < error * size * len(projection_of(model, BLOCKS, size)) ** 0.5 < 2
    assert errors[16] < errors[8] < errors[4]


def test_a_projected_document_keeps_a_few_numbers() -> None:
    model = built(olmo2)
    projection = projection_of(model, BLOCKS, 4)
    found = projected(model, documents(3), projection, BLOCKS, 100, 1)
    assert found.units.shape == (3, 2 * 7 * 4 * 4)
    assert found.units.dtype is torch.float16
    torch.testing.assert_close(found.units.float().norm(dim=1), torch.ones(3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
@pytest.mark.parametrize("behaviours", [len(QUERIES), 0])
def test_cosines_with_a_sketch_are_those_of_the_gradients_whatever_the_batch(
    batch_tokens: int, behaviours: int
) -> None:
    model, pool, others = built(olmo2), mixed(), documents(5, seed=3)
    sides = projection_of(model, BLOCKS, WIDE)
    sketch = Sketch(projected(model, others, sides, BLOCKS, 100, 2).units.float(), sides)
    exact = [cosines(similarities(model, pool, directions(model, [[o]], BLOCKS), BLOCKS, 100))[:, 0] for o in others]
    towards = directions(model, QUERIES[:behaviours], BLOCKS)
    found = similarities(model, pool, towards, BLOCKS, batch_tokens, sketch=sketch)
    torch.testing.assert_close(found.cosines.double(), torch.stack(exact, 1), rtol=0, atol=1e-3)
    kept = projected(model, pool, sides, BLOCKS, batch_tokens, 2)
    through_index = compared(kept, projected_directions(towards, sides), sketch).cosines
    torch.testing.assert_close(through_index, found.cosines, rtol=0, atol=2e-3)
    alone = similarities(model, pool, towards, BLOCKS, batch_tokens)
    assert alone.cosines.shape == (len(pool), 0)
    assert torch.equal(alone.dots, found.dots)


def test_an_index_gives_the_same_scores_without_a_pass(tmp_path: Path) -> None:
    model, pool = built(olmo2), documents(6)
    projection = projection_of(model, BLOCKS, 4)
    passes: list[int] = []

    def make() -> Projected:
        passes.append(1)
        return projected(model, pool, projection, BLOCKS, 100, 2)

    path = tmp_path / f"{index_key(weights_digest(model), BLOCKS, 2, 4, pool)}.safetensors"
    made, kept = read_or_made(path, make), read_or_made(path, make)
    assert passes == [1]
    assert all(torch.equal(*both) for both in zip(made, kept, strict=True))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    again = read_or_made(path, make)
    assert passes == [1, 1]
    assert torch.equal(again.units, made.units)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_an_index_is_that_of_its_weights_layers_and_documents() -> None:
    model, other = built(olmo2), built(olmo2)
    with torch.no_grad():
        other.model.layers[3].mlp.up_proj.weight[0, 0] += 1
    pool = documents(3)
    moved = [Encoded(pool[0].ids, max(1, pool[0].prompt_tokens - 1)), *pool[1:]]
    assert weights_digest(model) == weights_digest(built(olmo2))
    keys = {
        index_key(weights_digest(model), BLOCKS, 2, 4, pool),
        index_key(weights_digest(other), BLOCKS, 2, 4, pool),
        index_key(weights_digest(model), [1], 2, 4, pool),
        index_key(weights_digest(model), BLOCKS, 1, 4, pool),
        index_key(weights_digest(model), BLOCKS, 2, 5, pool),
        index_key(weights_digest(model), BLOCKS, 2, 4, pool[::-1]),
        index_key(weights_digest(model), BLOCKS, 2, 4, moved),
    }
    assert len(keys) == 7


def test_agreement_with_exact_is_that_of_the_ranks_and_leaves_the_weights_as_they_were() -> None:
    model, pool = built(olmo2).bfloat16(), documents(30)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = similarities(model, pool, directions(model, QUERIES, BLOCKS), BLOCKS, 300)
    told = agreement_with_exact(model, found, pool, QUERIES, BLOCKS, 300)
    assert told["documents"] == 30
    assert all(0.9 < tau < 1 for tau in told["kendall"])
    assert all(0.97 < rho < 1 for rho in told["spearman"])
    assert 0 < told["largest_difference"] < 0.05
    assert model.dtype is torch.bfloat16
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    exact = built(olmo2)
    same = similarities(exact, pool, directions(exact, QUERIES, BLOCKS), BLOCKS, 300)
    assert agreement_with_exact(exact, same, pool, QUERIES, BLOCKS, 300)["kendall"] == [1.0, 1.0]


@pytest.mark.parametrize(("n", "count"), [(0, 0), (1, 1), (63, 63), (64, 64), (50_000, 64)])
def test_a_sample_is_spread_over_all_documents(n: int, count: int) -> None:
    places = evenly_spaced(n)
    assert len(places) == count
    assert n == 0 or (places[0], places[-1]) == (0, n - 1)
