"""EK-FAC, the diagonal Fisher matrix and whitened gradients against dense matrices, and what they don't depend on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.test_per_example import built, documents
from tests.conftest import tiny_model
from tests.models.test_preference import preferences
from tests.oracles.curvature import Array, dense_blocks, dense_influence, dense_whitened, seen

from datablame.attribute.kernels import curvature, per_example
from datablame.attribute.kernels.curvature import (
    Curvature,
    Sides,
    covariances,
    eigenvectors,
    influence,
    preconditioned,
    squares,
)

BLOCKS = [1]
KINDS = ("fisher", "ek-fac", "trackstar")


def small() -> Any:
    return built(lambda: tiny_model(3, layers=3, hidden=8, heads=2, key_value_heads=1))


def curvatures_of(model: Any, pool: Sequence[Any], kind: str, batch_tokens: int, parts: int) -> dict[str, Curvature]:
    cuts = [pool[i::parts] for i in range(parts)]

    def total(sums: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([each[name] for each in sums]).sum(0) for name in sums[0]}

    bases = dict[str, Sides]()
    if kind != "fisher":
        sums = total([covariances(model, cut, BLOCKS, batch_tokens) for cut in cuts])
        names = {name.rpartition(" ")[0] for name in sums}
        bases = {n: Sides(eigenvectors(sums[f"{n} outputs"]), eigenvectors(sums[f"{n} inputs"])) for n in names}
    found = total([squares(model, cut, BLOCKS, batch_tokens, {"k": bases}) for cut in cuts])
    return {n[2:]: Curvature((each / len(pool)).float(), bases.get(n[2:])) for n, each in found.items()}


def scores_of(
    model: Any, pool: Sequence[Any], queries: Sequence[Any], kind: str, batch_tokens: int = 10_000, parts: int = 1
) -> Array:
    curvatures = curvatures_of(model, pool, kind, batch_tokens, parts)
    whitened = kind == "trackstar"
    towards = preconditioned(model, [queries], BLOCKS, curvatures, whitened=whitened)
    found = influence(model, pool, towards, BLOCKS, batch_tokens, curvatures if whitened else {})
    return (found.dots[:, 0] / (found.norms if whitened else 1)).numpy()


def same(found: Array, expected: Array, rtol: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("paired", [False, True])
def test_scores_are_those_of_dense_inverses(paired: bool) -> None:
    model, pool, queries = small(), [*documents(7), *(preferences(4) if paired else [])], documents(2, seed=1)
    dense = [seen(model, each, BLOCKS) for each in pool]
    asked = [seen(model, each, BLOCKS) for each in queries]
    diagonal, kronecker = (dense_blocks(dense, diagonal=each) for each in (True, False))
    same(scores_of(model, pool, queries, "fisher"), dense_influence(dense, asked, diagonal), 1e-4)
    same(scores_of(model, pool, queries, "ek-fac"), dense_influence(dense, asked, kronecker), 1e-4)
    same(scores_of(model, pool, queries, "trackstar"), dense_whitened(dense, asked, kronecker), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_depend_on_neither_batches_nor_order_nor_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pool, queries = small(), [*documents(7), *preferences(4)], documents(2, seed=1)
    whole = scores_of(model, pool, queries, kind)
    monkeypatch.setattr(curvature, "_HELD_NUMBERS", 1)
    same(scores_of(model, pool[::-1], queries, kind, batch_tokens=60, parts=3)[::-1], whole, 1e-4)


def test_a_batch_that_runs_out_of_memory_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pool = small(), documents(9)
    kinds: dict[str, Any] = {"k": {}}
    roomy = covariances(model, pool, BLOCKS, 10_000) | squares(model, pool, BLOCKS, 10_000, kinds)
    whole = per_example.backward_with_hooks

    def cramped(model: Any, documents: Any, *rest: Any) -> Any:
        losses = whole(model, documents, *rest)
        if len(documents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses

    monkeypatch.setattr(per_example, "backward_with_hooks", cramped)
    found = covariances(model, pool, BLOCKS, 10_000) | squares(model, pool, BLOCKS, 10_000, kinds)
    for name, expected in roomy.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_a_copy_of_the_only_query_is_most_like_it_in_the_whitened_space() -> None:
    model, query = small(), documents(1, shortest=8, seed=9)
    scores = scores_of(model, [*documents(6), *query], query, "trackstar")
    assert scores[-1] == pytest.approx(1, abs=1e-5)
    assert scores[:-1].max() < 0.99


def test_a_product_that_no_document_moves_has_no_say() -> None:
    gradients = torch.ones(1, 2, 3)
    still = Curvature(torch.zeros(2, 3), None)
    assert still.to_the(-1.0, gradients).tolist() == torch.zeros(1, 2, 3).tolist()
    inputs, deltas = torch.ones(4, 1, 3), torch.ones(4, 1, 2)
    assert curvature.whitened_squares(inputs, deltas, still).tolist() == [0] * 4
