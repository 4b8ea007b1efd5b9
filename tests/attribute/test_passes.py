from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.attribute.test_per_example import documents
from tests.attribute.test_preference_pairs import mixed

from datablame.attribute.kernels import rows
from datablame.attribute.kernels.observed import backward_with_hooks
from datablame.attribute.passes import Passes, run_passes
from datablame.attribute.work import Task
from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import Journal
from datablame.study.checks import impossible
from datablame.study.file import load_study
from datablame.study.schema import Attribute, ModelRef

QUERIES = (tuple(documents(2, seed=1)), tuple(documents(1, seed=2)))


def passes(folder: Path, out: Path, pool: Any, seen: list[int], gradients: bool = True, **settings: Any) -> Passes:
    task = Task(
        ModelRef(path=str(folder / "after")),
        "models.after",
        Attribute(max_tokens=60, **settings),
        QUERIES,
        gradients,
        "cpu",
        out / "items",
    )
    heard: list[tuple[str, str, float]] = []
    found = run_passes(
        task, pool, seen, Journal(out / "j.jsonl"), Execution(1, 1), Silent(), lambda *each: heard.append(each)
    )
    assert all(seconds > 0 for _, _, seconds in heard)
    return found


def test_activations_of_the_shared_pass_are_those_of_a_pass_of_their_own(
    tiny_pair_folder: Path, tmp_path: Path
) -> None:
    pool, seen = mixed(), [0, 3, 4, 11]
    shared = passes(tiny_pair_folder, tmp_path / "a", pool, seen)
    alone = passes(tiny_pair_folder, tmp_path / "b", pool, seen, gradients=False)
    assert alone.gradients is None
    np.testing.assert_allclose(shared.activations.documents, alone.activations.documents, rtol=1e-4, atol=1e-5)
    assert np.array_equal(shared.activations.queries, alone.activations.queries)
    assert shared.exactness is None
    nobody = passes(tiny_pair_folder, tmp_path / "c", pool, [])
    assert nobody.activations.documents.shape == (0, shared.activations.queries.shape[1])


def test_an_index_changes_no_score_and_serves_other_queries_without_a_pass(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, seen = documents(9), [1, 2]
    without = passes(tiny_pair_folder, tmp_path / "a", pool, seen, projection=4)
    kept = passes(tiny_pair_folder, tmp_path / "b", pool, seen, projection=4, index=str(tmp_path / "index"))
    calls: list[int] = []

    def counted(model: Any, documents: Any, *rest: Any) -> Any:
        calls.append(len(documents))
        return backward_with_hooks(model, documents, *rest)

    monkeypatch.setattr(rows, "backward_with_hooks", counted)
    again = passes(tiny_pair_folder, tmp_path / "c", pool, seen, projection=4, index=str(tmp_path / "index"))
    # What is passed again is the sample that is compared with exact gradients, projected and not.
    assert sum(calls) == 2 * len(pool)
    for found in (kept, again):
        assert found.gradients is not None
        assert without.gradients is not None
        for one, other in zip(found.gradients[:3], without.gradients[:3], strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(found.activations.documents, without.activations.documents)
        assert found.exactness == without.exactness
    assert without.exactness is not None
    assert without.exactness["documents"] == 9
    assert all(-1 <= tau < 1 for tau in without.exactness["kendall"])


def test_16_bits_are_a_choice_whose_agreement_with_32_is_told(tiny_pair_folder: Path, tmp_path: Path) -> None:
    pool = documents(12)
    exact = passes(tiny_pair_folder, tmp_path / "a", pool, [])
    narrow = passes(tiny_pair_folder, tmp_path / "b", pool, [], dtype="bfloat16")
    assert exact.exactness is None
    assert narrow.exactness is not None
    assert exact.gradients is not None
    assert narrow.gradients is not None
    cosines = [each.dots / each.norms[:, None] for each in (exact.gradients, narrow.gradients)]
    assert not np.array_equal(cosines[0], cosines[1])
    assert np.abs(cosines[0] - cosines[1]).max() == pytest.approx(narrow.exactness["largest_difference"], abs=2e-2)
    assert min(narrow.exactness["kendall"]) > 0.8
    assert torch.get_default_dtype() is torch.float32


def test_an_index_without_a_projection_is_refused() -> None:
    study = load_study("organism")
    attribute = study.attribute.model_copy(update={"index": "kept"})
    (problem,) = impossible(study.model_copy(update={"attribute": attribute}))
    assert "attribute.index = kept" in problem
    assert "set attribute.projection" in problem
