from pathlib import Path

import pytest
from tests.patch.small import QUICK, attributed, patched, study_of

from datablame.errors import RequestError
from datablame.patch.registry import ARMS, ArmKind, arm_kinds
from datablame.patch.trainings import FineTuneData
from datablame.tables import Arm, ArmInfo, ArmTest, Look


def shortest(data: FineTuneData, k: int, _: int) -> list[str]:
    """The k shortest documents of the fine-tune set."""
    length = {item.doc_id: item.characters for item in data.items}
    return sorted(data.members, key=lambda doc_id: (length[doc_id], doc_id))[:k]


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> ArmKind:
    """An arm of another package."""
    monkeypatch.setattr(ARMS, "_things", dict(ARMS.all()))
    kind = ArmKind("shortest", "shortest", "control", Look("#FFFFFF", "#000000", "o"), "the shortest", shortest)
    ARMS.add(kind.name, kind)
    return kind


def test_an_arm_that_a_stranger_registers_runs_as_an_intervention(
    tmp_path: Path, tiny_pair_folder: Path, stranger: ArmKind
) -> None:
    study = study_of(
        tmp_path, tiny_pair_folder, arms=["after", "baseline", "random", "shortest", "gradient"], k=[1, 3], **QUICK
    )
    tables = patched(attributed(study, tmp_path / "run"))
    arms = {(row.arm, row.k): row for row in tables.rows(Arm)}
    assert arms["shortest", 1].removed == ("d00",)
    assert arms["shortest", 3].removed == ("d00", "d01", "d02")
    assert len(arms["shortest", 3].fillers) == 3
    assert [row.p_holm for row in tables.rows(ArmTest, arm="shortest")] == [None] * len(
        tables.rows(ArmTest, arm="shortest")
    )
    assert {(row.arm, row.k) for row in tables.rows(ArmTest) if row.headline} >= {("shortest", 3), ("gradient", 3)}
    assert stranger.info(None) in tables.rows(ArmInfo)


def test_an_arm_is_a_registered_one_or_what_a_method_flags(tmp_path: Path, tiny_pair_folder: Path) -> None:
    study = study_of(tmp_path, tiny_pair_folder, arms=["after", "baseline", "random", "bottom", "loss", "gradient"])
    kinds = {kind.name: kind for kind in arm_kinds(study)}
    assert [kind.role for kind in kinds.values()] == ["after", "baseline", "random", "control", "method", "method"]
    assert (kinds["gradient"].in_family, kinds["loss"].in_family, kinds["bottom"].in_family) == (True, False, False)
    assert (kinds["gradient"].target, kinds["bottom"].target) == ("what gradient flagged", "what gradient ranks last")
    with pytest.raises(RequestError, match=r"patch\.arms = bottum is not a arm; did you mean bottom\?"):
        arm_kinds(study_of(tmp_path, tiny_pair_folder, arms=["bottum"]))
