"""What a run folder is, and how far its run is; looking changes nothing."""

from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small import ONE, small_study

from datablame.config.file import dump_study
from datablame.config.schema import Study
from datablame.engine.execute import Silent
from datablame.engine.files import read_json, write_json
from datablame.errors import RequestError
from datablame.pipeline.phases import NAMES, open_run, status
from datablame.world.freeze import freeze


@pytest.fixture
def frozen(tmp_path: Path, tiny_pair_folder: Path) -> tuple[Study, Path]:
    """A study and a run folder that holds its world."""
    study, root = small_study(tmp_path / "files", tiny_pair_folder), tmp_path / "run"
    freeze(study, root, execution=ONE, progress=Silent())
    (root / "study.yaml").write_text(dump_study(study))
    return study, root


def snapshot(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_before_the_world_is_frozen_everything_is_missing(tmp_path: Path) -> None:
    study = small_study(tmp_path / "files", tmp_path)
    assert status(study, tmp_path / "run").states == dict.fromkeys(("world", *NAMES), "missing")
    assert not (tmp_path / "run").exists()


def test_a_changed_study_makes_its_world_stale_until_it_is_frozen_again(frozen: tuple[Study, Path]) -> None:
    study, root = frozen
    before = snapshot(root)
    assert status(study, root).states == {"world": "done", **dict.fromkeys(NAMES, "missing")}
    changed: dict[str, Any] = {"patch": study.patch.model_copy(update={"steps": 7})}
    assert status(study.model_copy(update=changed), root).states["world"] == "stale"
    assert snapshot(root) == before


def test_a_folder_of_another_study_or_of_other_files_is_refused(frozen: tuple[Study, Path], tmp_path: Path) -> None:
    study, root = frozen
    with pytest.raises(RequestError, match="holds the study small, not other; choose another --out"):
        open_run(root, study.model_copy(update={"name": "other"}), resume=True)
    with pytest.raises(RequestError, match="holds a run of small; --resume continues it"):
        open_run(root, study, resume=False)
    assert open_run(root, study, resume=True) is study
    assert open_run(root, None, resume=True) == study
    (tmp_path / "thesis" / "artifacts").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"holds files but no study\.yaml; choose an empty folder with --out"):
        open_run(tmp_path / "thesis", study, resume=True)
    with pytest.raises(RequestError, match=r"holds no study\.yaml; datablame run STUDY --out"):
        open_run(tmp_path / "thesis", None, resume=True)


@pytest.mark.parametrize("left", [[], ["preregistration.json", "run.lock"], ["run.lock", "artifacts/world/pool.json"]])
def test_a_run_begins_in_an_empty_folder_beside_a_registration_and_where_one_was_killed(
    tmp_path: Path, left: list[str]
) -> None:
    study, root = small_study(tmp_path / "files", tmp_path), tmp_path / "run"
    for name in left:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert open_run(root, study, resume=False) is study


@pytest.mark.parametrize("how", ["before worlds", "another format"])
def test_a_folder_of_another_version_is_refused_with_its_version(frozen: tuple[Study, Path], how: str) -> None:
    study, root = frozen
    (root / "study.yaml").write_text("name: small\nsurface: {cuda_graphs: true}\n")
    path = root / "artifacts/world/world.json"
    if how == "another format":
        write_json(path, {**read_json(path), "format": 0, "datablame": "0.0.9"})
    else:
        path.unlink()
        write_json(root / "artifacts/scan/done.json", {})
        write_json(root / "manifest.json", {"versions": {"datablame": "0.0.9"}})
    before = snapshot(root)
    for asked in (study, None):
        with pytest.raises(RequestError, match=r"was written by datablame 0\.0\.9") as refusal:
            open_run(root, asked, resume=True)
        assert "datablame run STUDY --out NEW starts over" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert snapshot(root) == before
