"""EK-FAC, the diagonal Fisher matrix and whitened gradients against dense matrices, and what they don't depend on."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.attribute.conftest import CONTROLS, Make
from tests.attribute.test_gradients import OUTPUTS, N
from tests.attribute.test_per_example import built, documents
from tests.attribute.test_run import scores_of as scores_of_run
from tests.conftest import tiny_model
from tests.models.test_preference import preferences
from tests.oracles.curvature import Array, dense_blocks, dense_influence, dense_whitened, seen
from tests.worlds import ONE, work

from datablame.attribute import loop
from datablame.attribute.evidence.curvature import EkfacInfluence, FisherInfluence, WhitenedSimilarity
from datablame.attribute.kernels import curvature, hooks, per_example
from datablame.attribute.kernels.curvature import (
    Curvature,
    Sides,
    covariances,
    eigenvectors,
    influence,
    preconditioned,
    squares,
)
from datablame.attribute.loop import collect
from datablame.attribute.registry import METHODS, Evidence, Inquiry
from datablame.config.schema import Behaviour, ModelRef
from datablame.engine.execute import Execution
from datablame.models.chat import Encoded, Preference
from datablame.models.load import load_model
from datablame.tables import Finding, MethodInfo

BLOCKS = [1]
KINDS = ("fisher", "ek-fac", "trackstar")


def small() -> Any:
    return built(lambda: tiny_model(3, layers=3, hidden=8, heads=2, key_value_heads=1))


def mixed() -> list[Encoded | Preference]:
    return [*documents(6), *preferences(3)]


def curvatures_of(model: Any, pool: Sequence[Any], kind: str, batch_tokens: int, parts: int) -> dict[str, Curvature]:
    cuts = [pool[i::parts] for i in range(parts)]

    def total(sums: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([each[name] for each in sums]).sum(0) for name in sums[0]}

    bases = dict[str, Sides]()
    if kind != "fisher":
        sums = total([covariances(model, [cut[:1], cut[1:]], BLOCKS, batch_tokens) for cut in cuts])
        names = {name.rpartition(" ")[0] for name in sums}
        bases = {n: Sides(eigenvectors(sums[f"{n} outputs"]), eigenvectors(sums[f"{n} inputs"])) for n in names}
    found = total([squares(model, [cut[:1], cut[1:]], BLOCKS, batch_tokens, {"k": bases}) for cut in cuts])
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


def test_scores_are_those_of_dense_inverses() -> None:
    model, pool, queries = small(), mixed(), documents(2, seed=1)
    dense = [seen(model, each, BLOCKS) for each in pool]
    asked = [seen(model, each, BLOCKS) for each in queries]
    diagonal, kronecker = (dense_blocks(dense, diagonal=each) for each in (True, False))
    same(scores_of(model, pool, queries, "fisher"), dense_influence(dense, asked, diagonal), 1e-4)
    same(scores_of(model, pool, queries, "ek-fac"), dense_influence(dense, asked, kronecker), 1e-4)
    same(scores_of(model, pool, queries, "trackstar"), dense_whitened(dense, asked, kronecker), 1e-4)


@pytest.mark.parametrize(
    "kind", ["fisher", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("trackstar", "ek-fac"))]
)
def test_scores_depend_on_neither_batches_nor_order_nor_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pool, queries = small(), mixed(), documents(2, seed=1)
    whole = scores_of(model, pool, queries, kind)
    monkeypatch.setattr(curvature, "_HELD_NUMBERS", 1)
    same(scores_of(model, pool[::-1], queries, kind, batch_tokens=60, parts=3)[::-1], whole, 1e-4)


def test_a_batch_that_runs_out_of_memory_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pool = small(), documents(9)
    kinds: dict[str, Any] = {"k": {}}
    roomy = covariances(model, [pool], BLOCKS, 10_000) | squares(model, [pool], BLOCKS, 10_000, kinds)
    whole = hooks.backward_with_hooks

    def cramped(model: Any, documents: Any, *rest: Any) -> Any:
        losses = whole(model, documents, *rest)
        if len(documents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses

    monkeypatch.setattr(per_example, "backward_with_hooks", cramped)
    found = covariances(model, [pool], BLOCKS, 10_000) | squares(model, [pool], BLOCKS, 10_000, kinds)
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


def collected(make: Make, root: str, kinds: Sequence[Any], execution: Execution = ONE, **settings: Any) -> Any:
    about = {"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "methods": ["gradient"], "layers": [1], **settings}
    made = make(root, attribute=about, **CONTROLS)
    inquiry = Inquiry(
        world=made.world,
        work=work(made.world.root, "attribute", execution),
        behaviours=list(made.world.behaviours),
        queries=[*OUTPUTS[:2], replace(OUTPUTS[2], behaviour="ferns")],
        harmless=[],
        words={},
        scored=np.arange(N),
        candidates={"nuts": np.array([0, 3, 4, 11]), "ferns": np.array([4])},
        needs=dict.fromkeys(kinds, "whole"),
    )
    return collect(inquiry, []), inquiry


EVERY = (FisherInfluence, EkfacInfluence, WhitenedSimilarity)


@pytest.mark.slow
def test_the_provider_gives_what_the_kernel_does(make: Make) -> None:
    found, inquiry = collected(make, "a", EVERY)
    world = inquiry.world
    pool = world.pool.encoded(list(range(N)))
    model = load_model(world.models.after, device="cpu", field="models.after")
    queries = inquiry.encoded(OUTPUTS[:2])
    for kind, name in zip(EVERY, KINDS, strict=True):
        if name != "ek-fac":
            same(found[kind].scores[:, 0], scores_of(model, pool, queries, name), 1e-4)
        assert found[kind].reasons == {}
        assert found[kind].findings["documents that the curvature rests on"] == N
        assert found[kind].findings["damping"].startswith("0.1 x mean eigenvalue")
    assert not list((inquiry.work.out / "items").glob("curvature-covariances*"))


@pytest.mark.slow
def test_neither_shards_nor_workers_nor_batches_change_a_score(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = collected(make, "a", EVERY)
    monkeypatch.setattr(loop, "_SHARD_DOCUMENTS", 100)
    others, _ = collected(make, "b", EVERY, Execution(workers=2, threads=1), batch_tokens=50)
    for kind in EVERY:
        same(others[kind].scores, found[kind].scores, 1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_16_bits_rank_as_32_do(make: Make, dtype: str) -> None:
    exact, (narrow, _) = collected(make, "a", EVERY)[0], collected(make, "b", EVERY, dtype=dtype)
    for kind in EVERY:
        assert spearmanr(exact[kind].scores[:, 0], narrow[kind].scores[:, 0]).statistic > 0.9


def test_fisher_alone_pays_for_no_eigenbasis_and_a_resumed_run_for_nothing(make: Make) -> None:
    found, inquiry = collected(make, "a", [FisherInfluence])
    keys = inquiry.work.journal.read().keys()
    assert {key.rpartition("-")[0] for key in keys} == {"curvature", "curvature-squares", "curvature-documents"}
    again = collect(inquiry, [])
    assert np.array_equal(again[FisherInfluence].scores, found[FisherInfluence].scores)


def write(folder: Path, model: Any, head: float) -> None:
    """The model with this number all over its head."""
    torch.nn.init.constant_(model.get_output_embeddings().weight, head)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (0.0, "no document has a gradient: the curvature is zero"),
        pytest.param(3e38, "the gradients are not finite", marks=pytest.mark.slow),
    ],
)
def test_a_curvature_without_an_inverse_is_the_methods_reason_and_the_others_go_on(
    make: Make, tmp_path: Path, tiny_pair_folder: Path, head: float, why: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pair_folder / "after", broken)
    methods = ["fisher", "ek-fac", "trackstar", "activation", "random"]
    settings = {"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "methods": methods, "layers": [1]}
    models = {"before": str(tiny_pair_folder / "before"), "after": str(broken)}
    made = make(models=models, attribute=settings, **CONTROLS)
    write(broken, load_model(ModelRef(path=str(broken)), device="cpu", field="models.after"), head)
    made.run()
    infos = {info.name: info for info in made.tables.rows(MethodInfo)}
    for name in methods[:3]:
        assert [(each.documents, each.reason.startswith(why)) for each in infos[name].unranked] == [(N, True)]
    assert infos["activation"].unranked == ()
    assert len(scores_of_run(made, "activation")) == N


@pytest.mark.parametrize("kind", [*zip(KINDS, EVERY, strict=True)])
def test_a_reason_holds_for_its_behaviour_alone_and_findings_are_told(kind: tuple[str, Any]) -> None:
    name, of = kind
    scores, behaviours = np.array([[1.0, 0.0], [2.0, 0.0]]), [Behaviour(id=each, description="") for each in "ab"]
    found = of(scores, {"damping": "some"}, {"b": "its outputs have no gradient"})
    evidence = Evidence(0, ["d1", "d2"], behaviours, [], {of: found})
    np.testing.assert_array_equal(METHODS.named(name).score(evidence), [[1, np.nan], [2, np.nan]])
    assert evidence.reasons == {"b": "its outputs have no gradient"}
    assert evidence.findings == [Finding("*", "damping", "some")]
