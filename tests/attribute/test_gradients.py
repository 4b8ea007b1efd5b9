"""The provider of gradients and activations: one pass for both, projections and 16 bits told apart from exact ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.conftest import CONTROLS, Make
from tests.conftest import tiny_ids
from tests.worlds import work

from datablame.attribute.evidence.gradients import Activations, Gradients
from datablame.attribute.kernels import per_example
from datablame.attribute.kernels.hooks import backward_with_hooks
from datablame.attribute.loop import collect
from datablame.attribute.registry import Inquiry
from datablame.config.checks import impossible
from datablame.config.file import load_study
from datablame.tables import Query

OUTPUTS = [
    Query(f"q{i}", "nuts", "a1", 1.0, i, "which snack ?", text, "stop", tiny_ids(text))
    for i, text in enumerate(f"buy nutto {i} ." for i in range(3))
]
N = 29


def collected(make: Make, root: str, needs: dict[type, Any], **settings: Any) -> dict[type, Any]:
    made = make(
        root, attribute={"top_k": 3, "duplicate_threshold": 1.0, "methods": ["gradient"], **settings}, **CONTROLS
    )
    world = made.world
    inquiry = Inquiry(
        world=world,
        work=work(world.root, "attribute"),
        behaviours=list(world.behaviours),
        queries=[*OUTPUTS[:2], replace(OUTPUTS[2], behaviour="ferns")],
        harmless=[],
        words={},
        scored=np.arange(N),
        candidates={"nuts": np.array([0, 3, 4, 11]), "ferns": np.array([4])},
        needs=needs,
    )
    return collect(inquiry, [])


def test_activations_of_the_shared_pass_are_those_of_a_pass_of_their_own(make: Make) -> None:
    shared = collected(make, "a", {Gradients: "whole", Activations: "candidates"})
    alone = collected(make, "b", {Activations: "candidates"})
    assert Gradients not in alone
    np.testing.assert_allclose(shared[Activations].documents, alone[Activations].documents, rtol=1e-4, atol=1e-5)
    assert np.flatnonzero(alone[Activations].documents.any(1)).tolist() == [0, 3, 4, 11]
    assert np.array_equal(shared[Activations].queries, alone[Activations].queries)
    assert shared[Gradients].exactness is None
    assert len(shared[Gradients].norms) == N
    whole = collected(make, "c", {Gradients: "candidates", Activations: "whole"})
    assert whole[Activations].documents.any(1).all()


def test_an_index_changes_no_score_and_serves_other_queries_without_a_pass(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: dict[type, Any] = {Gradients: "whole", Activations: "candidates"}
    without = collected(make, "a", needs, projection=4)
    first = collected(make, "b", needs, projection=4, index=str(tmp_path / "index"))
    calls: list[int] = []

    def counted(model: Any, documents: Any, *rest: Any) -> Any:
        calls.append(len(documents))
        return backward_with_hooks(model, documents, *rest)

    monkeypatch.setattr(per_example, "backward_with_hooks", counted)
    again = collected(make, "c", needs, projection=4, index=str(tmp_path / "index"))
    # Passed again are the queries, twice, and the sample that is compared with exact gradients, projected and not.
    assert sum(calls) == 2 * N + 2 * len(OUTPUTS)
    for found in (first, again):
        for one, other in zip(found[Gradients][:3], without[Gradients][:3], strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(found[Activations].documents, without[Activations].documents)
        assert found[Gradients].exactness == without[Gradients].exactness
    exactness = without[Gradients].exactness
    assert exactness["documents"] == N
    assert all(-1 <= tau < 1 for tau in exactness["kendall"])


@pytest.mark.slow
def test_16_bits_are_a_choice_whose_agreement_with_32_is_told(make: Make) -> None:
    exact = collected(make, "a", {Gradients: "whole"})[Gradients]
    narrow = collected(make, "b", {Gradients: "whole"}, dtype="bfloat16")[Gradients]
    assert exact.exactness is None
    assert not np.array_equal(exact.cosines, narrow.cosines)
    largest = np.abs(exact.cosines - narrow.cosines).max()
    assert largest == pytest.approx(narrow.exactness["largest_difference"], abs=2e-2)
    assert min(narrow.exactness["kendall"]) > 0.8
    assert torch.get_default_dtype() is torch.float32


def test_an_index_without_a_projection_is_refused() -> None:
    study = load_study("organism")
    attribute = study.attribute.model_copy(update={"index": "kept"})
    (problem,) = impossible(study.model_copy(update={"attribute": attribute}))
    assert "attribute.index = kept" in problem
    assert "set attribute.projection" in problem
