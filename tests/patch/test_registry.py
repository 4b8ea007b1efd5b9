import runpy
from pathlib import Path

import pytest
from tests.patch.small import QUICK, attributed, patched, study_of

from datablame.errors import RequestError
from datablame.patch.registry import ARMS, ArmKind, arm_kinds
from datablame.tables import Arm, ArmInfo, ArmTest

EXAMPLE = Path(__file__).parents[2] / "examples/plugin/src/datablame_example/longest.py"


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> ArmKind:
    """The arm of another package."""
    monkeypatch.setattr(ARMS, "_things", dict(ARMS.all()))
    runpy.run_path(str(EXAMPLE))
    return ARMS.named("longest")


def test_an_arm_that_a_stranger_registers_runs_as_an_intervention(
    tmp_path: Path, tiny_pair_folder: Path, stranger: ArmKind
) -> None:
    study = study_of(
        tmp_path, tiny_pair_folder, arms=["after", "baseline", "random", "longest", "gradient"], k=[1, 3], **QUICK
    )
    tables = patched(attributed(study, tmp_path / "run"))
    arms = {(row.arm, row.k): row for row in tables.rows(Arm)}
    assert arms["longest", 1].removed == ("d30",)
    assert set(arms["longest", 3].removed) == {"d11", "d30", "d31"}
    assert len(arms["longest", 3].fillers) == 3
    assert [row.p_holm for row in tables.rows(ArmTest, arm="longest")] == [None] * len(
        tables.rows(ArmTest, arm="longest")
    )
    assert {(row.arm, row.k) for row in tables.rows(ArmTest) if row.headline} >= {("longest", 3), ("gradient", 3)}
    assert stranger.info(None) in tables.rows(ArmInfo)


def test_an_arm_is_a_registered_one_or_what_a_method_flags(tmp_path: Path, tiny_pair_folder: Path) -> None:
    study = study_of(tmp_path, tiny_pair_folder, arms=["after", "baseline", "random", "bottom", "loss", "gradient"])
    kinds = {kind.name: kind for kind in arm_kinds(study)}
    assert [kind.role for kind in kinds.values()] == ["after", "baseline", "random", "control", "method", "method"]
    assert (kinds["gradient"].in_family, kinds["loss"].in_family, kinds["bottom"].in_family) == (True, False, False)
    assert (kinds["gradient"].target, kinds["bottom"].target) == ("what gradient flagged", "what gradient ranks last")
    with pytest.raises(RequestError, match=r"patch\.arms = bottum is not a arm; did you mean bottom\?"):
        arm_kinds(study_of(tmp_path, tiny_pair_folder, arms=["bottum"]))
