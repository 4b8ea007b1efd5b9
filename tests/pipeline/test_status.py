"""What a run folder is, and how far its run is; looking changes nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small import ONE, small_study

from datablame.config.file import dump_study
from datablame.config.organism import Organism
from datablame.config.schema import Study
from datablame.engine.execute import Silent
from datablame.engine.files import read_json, read_jsonl, write_json, write_jsonl, write_table
from datablame.engine.phase import dependencies
from datablame.errors import RequestError
from datablame.organism.make import cache_path, identity
from datablame.pipeline.phases import NAMES, open_run, status
from datablame.pipeline.run import frozen as frozen_world
from datablame.pipeline.run import write_manifest
from datablame.surface.phase import SCAN
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


def organism_in_cache(recipe: Organism, pair: Path, folder: Path) -> None:
    """An organism as it is kept, with small checkpoints."""
    made = cache_path(recipe)
    values = small_study(made, pair).model_dump(mode="json", by_alias=True)
    for name in ("before", "after"):
        shutil.copytree(pair / name, made / name)
    write_json(made / "recipe.json", identity(recipe))
    write_json(made / "rules.json", {"behaviours": [{**values["behaviours"][0], "harmful": ["walk"]}]})
    rows = [
        {**p, "split": split.replace("_", "-")}
        for split in ("attribution", "held_out")
        for p in values["prompts"][split]
    ]
    write_jsonl(made / "prompts.jsonl", rows)
    write_table(made / "documents.parquet", read_jsonl(made / "pool.jsonl"))


def test_an_organism_that_was_changed_makes_everything_stale(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    organism_in_cache(Organism(seed=3), tiny_pair_folder, tmp_path)
    brought = dict.fromkeys(("models", "data", "prompts", "truth"), None) | {"behaviours": (), "judge": {}}
    study, root = small_study(tmp_path / "files", tiny_pair_folder, organism={"seed": 3}, **brought), tmp_path / "run"
    world = frozen_world(study, root, execution=ONE, progress=Silent())
    write_manifest(root, study, world, {})
    write_json(root / "artifacts/scan/done.json", {"dependencies": dependencies(SCAN, world), "outputs": {}})
    assert status(study, root).states["scan"] == status(study, root).states["world"] == "done"
    changed = study.model_copy(update={"organism": Organism(seed=4)})
    states, why, _, _ = status(changed, root)
    assert (states["world"], states["scan"], states["patch"]) == ("stale", "stale", "missing")
    assert why == {name: ["organism.seed was 3 and is 4"] for name in ("world", "scan")}
    # The other one is there too, and has other weights.
    organism_in_cache(Organism(seed=4), tiny_pair_folder, tmp_path)
    shutil.copytree(tiny_pair_folder / "before", cache_path(Organism(seed=4)) / "after", dirs_exist_ok=True)
    assert status(changed, root).why["scan"] == ["models.after.weights_sha256 was changed"]
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "another cache"))
    assert status(study, root).states["scan"] == "done"


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
    with pytest.raises(RequestError, match=r"study\.yaml is a file; give a run folder"):
        open_run(root / "study.yaml", None, resume=True)


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
