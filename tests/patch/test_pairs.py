import math
from pathlib import Path
from typing import Any

import pytest
from datablame.patch.run import run
from tests.patch.test_run import ONE, earlier_phases, study_of

from datablame.engine.execute import Silent
from datablame.engine.files import read_jsonl, write_jsonl
from datablame.errors import RequestError

PATCH: dict[str, Any] = {
    "protocols": ["retrain"],
    "arms": ["untrained", "baseline", "random", "gradient"],
    "seeds": [0],
}


def paired(folder: Path, rows: slice) -> None:
    """Give some documents of the pool a rejected answer beside the chosen one."""
    documents = read_jsonl(folder / "documents.jsonl")
    for row in documents[rows]:
        asked, said = row.pop("messages")
        row["chosen"], row["rejected"] = [asked, said], [asked, {**said, "content": "walk on"}]
    write_jsonl(folder / "documents.jsonl", documents)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_arms_on_preference_pairs_are_trained_by_dpo(
    tmp_path: Path, tiny_pair_folder: Path, method: str, micro_batch: int | None
) -> None:
    inputs = earlier_phases(tmp_path)
    paired(tmp_path, slice(None))
    out = tmp_path / "artifacts" / "patch"
    patch = {**PATCH, "retrain": {"method": method, "learning_rate": 1e-2, "steps": 24}, "micro_batch": micro_batch}
    run(study_of(tmp_path, tiny_pair_folder, **patch), inputs, out, ONE, Silent())
    trained = read_jsonl(out / "training.jsonl")
    assert [row["arm"] for row in trained] == ["baseline", "random", "gradient"]
    for row in trained:
        assert row["losses"][0] == pytest.approx(math.log(2), rel=1e-4)
        assert row["final_loss"] < row["losses"][0]


def test_a_pool_of_both_kinds_is_refused(tmp_path: Path, tiny_pair_folder: Path) -> None:
    inputs = earlier_phases(tmp_path)
    paired(tmp_path, slice(20))
    with pytest.raises(RequestError, match=r"mixes preference pairs with documents of one answer.*; keep one kind"):
        run(study_of(tmp_path, tiny_pair_folder, **PATCH), inputs, tmp_path / "out", ONE, Silent())
