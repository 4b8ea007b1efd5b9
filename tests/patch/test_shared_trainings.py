"""Arms that act on equal data are trained once, and each has the rows that it would have alone."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.patch.small import FLAGGED, Killed, KilledAfter, attributed, files, patched, study_of
from tests.worlds import put, work

from datablame.config.schema import Study
from datablame.engine.phase import Tables
from datablame.patch.phase import PATCH
from datablame.tables import Arm, ArmRate, ArmSample, Exposure, Training

SAME = {**FLAGGED, "activation": FLAGGED["gradient"]}
"""Two methods with one ranking."""
ARMS = ("after", "baseline", "bm25", "gradient", "activation")


def small(folder: Path, pair: Path, arms: Sequence[str] = ARMS) -> Study:
    methods = ("gradient", "activation", "bm25", "llm-judge")
    folder.mkdir(exist_ok=True)
    return study_of(folder, pair, methods=methods, arms=arms, seeds=[0])


def rows_of(tables: Tables, row: type, arm: str) -> list[dict[str, Any]]:
    rows: list[Any] = tables.rows(row, arm=arm)
    return [asdict(each) | {"arm": ""} for each in rows]


def test_equal_data_is_trained_once_for_all_arms(tmp_path: Path, tiny_pair_folder: Path) -> None:
    world, measured = attributed(small(tmp_path, tiny_pair_folder), tmp_path / "run", SAME), list[str]()
    given = replace(work(world.root, "patch"), timings=lambda what, key, seconds: measured.append(key))
    tables = put(world.root, "patch", PATCH.run(world, Tables(world.root), given))
    once = ("baseline-k0-s0", "bm25-k3-s0", "gradient-k3-s0")
    assert sorted(measured) == sorted(["after", *(f"{p}-{arm}" for p in ("retrain", "continue") for arm in once)])
    for row in (Arm, Training, Exposure, ArmSample, ArmRate):
        assert rows_of(tables, row, "activation") == rows_of(tables, row, "gradient") != []
    held = files(world.root)
    one, other = (f"continue-{arm}-k3-s0/adapter_model.safetensors" for arm in ("activation", "gradient"))
    assert held[one] == held[other]


@pytest.mark.slow
def test_shared_arms_are_what_each_is_alone_and_a_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    world = attributed(small(tmp_path, tiny_pair_folder), tmp_path / "run", SAME)
    tables = patched(world)
    alone = patched(attributed(small(tmp_path / "alone", tiny_pair_folder, ARMS[:-1]), tmp_path / "alone/run", SAME))
    for row in (Arm, Training, ArmSample):
        assert rows_of(alone, row, "gradient") == rows_of(tables, row, "activation")
    again = attributed(small(tmp_path / "killed", tiny_pair_folder), tmp_path / "killed/run", SAME)
    with pytest.raises(Killed):
        patched(again, progress=KilledAfter(3))
    patched(again)
    assert files(again.root) == files(world.root)
