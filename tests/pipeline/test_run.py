"""What a run says about its checkpoints, what it keeps of them, and what it refuses before it has written anything."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.models.hub_cache import cached
from tests.pipeline.small import ONE, small_study

from datablame.config.schema import Study
from datablame.engine.execute import Silent
from datablame.engine.run_folder import append_timing
from datablame.errors import RequestError
from datablame.pipeline.phases import status
from datablame.pipeline.run import run_study

OLD, NEW = "a" * 40, "b" * 40


def scanned(study: Study, root: Path) -> bool:
    """Whether the scan had to run."""
    return not run_study(study, root, execution=ONE, progress=Silent(), until="scan")["scan"]


def manifest(root: Path) -> Any:
    return json.loads((root / "manifest.json").read_text())


@pytest.fixture
def hub(tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", "org/tiny", tiny_pair_folder / "before", OLD, "sft")
    cached(tmp_path / "hub", "org/tiny", tiny_pair_folder / "after", NEW, "main")
    return tmp_path / "hub"


def test_the_manifest_names_commits_and_the_run_keeps_them(hub: Path, tiny_pair_folder: Path, tmp_path: Path) -> None:
    def study_of(**after: str) -> Study:
        models = {"before": {"path": "org/tiny", "revision": "sft"}, "after": {"path": "org/tiny", **after}}
        return small_study(tmp_path / "files", tiny_pair_folder, models=models)

    study, root = study_of(), tmp_path / "run"
    assert scanned(study, root)
    models = manifest(root)["models"]
    assert [models[name]["commit"] for name in ("before", "after")] == [OLD, NEW]
    samples = (root / "artifacts/scan/samples.parquet").read_bytes()

    moved = Path(shutil.copytree(tiny_pair_folder / "after", tmp_path / "moved")) / "model.safetensors"
    save_file({name: 1.5 * tensor for name, tensor in load_file(moved).items()}, moved, {"format": "pt"})
    cached(hub, "org/tiny", moved.parent, "c" * 40, "main")
    assert not scanned(study, root)
    shutil.rmtree(root / "artifacts/scan")
    assert scanned(study, root)
    assert manifest(root)["models"]["after"]["commit"] == NEW
    assert (root / "artifacts/scan/samples.parquet").read_bytes() == samples

    assert scanned(study_of(revision="c" * 40), root)


def test_the_manifest_has_identities_seconds_and_the_device(tiny_pair_folder: Path, tmp_path: Path) -> None:
    study, root = small_study(tmp_path / "files", tiny_pair_folder), tmp_path / "run"
    scanned(study, root)
    first = manifest(root)
    assert first["models"]["before"] != first["models"]["after"]
    assert {"versions", "data", "files", "seed", "cost_usd"} < set(first)
    assert first["machine"]["device"] == "cpu"
    assert first["phases"]["scan"]["peak_gpu_mb"] == 0
    assert set(first["phases"]) == {"world", "scan"}
    assert first["methods"] == {}

    for key, seconds in (("queries", 1.25), ("0", 2.25)):
        append_timing(root, "attribute/gradient", key, seconds)
    append_timing(root, "phase/attribute", "ran", 3.5)
    assert not scanned(study, root)
    again = manifest(root)
    assert again["models"] == first["models"]
    assert again["methods"] == {"gradient": {"seconds": 3.5}}
    assert again["phases"]["scan"]["skipped"]
    assert again["phases"]["attribute"]["seconds"] == 3.5


def test_what_does_not_fit_is_refused_before_the_first_phase(tiny_pair_folder: Path, tmp_path: Path) -> None:
    pair, root = Path(shutil.copytree(tiny_pair_folder, tmp_path / "pair")), tmp_path / "runs" / "run"
    template = pair / "before" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    study = small_study(tmp_path / "files", pair)
    with pytest.raises(RequestError, match="the chat templates differ") as refusal:
        scanned(study, root)
    assert refusal.value.exit_code == 2
    assert not root.parent.exists()
    assert status(study, root).states["world"] == "missing"
    assert scanned(small_study(tmp_path / "files", pair, models={"chat_template": "after"}), root)


def test_a_refused_change_leaves_a_run_as_it_was(tiny_pair_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    scanned(small_study(tmp_path / "files", tiny_pair_folder), root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "timings.jsonl"}
    with pytest.raises(RequestError, match=r"attribute\.top_k = 90 is more than"):
        scanned(small_study(tmp_path / "files", tiny_pair_folder, attribute={"top_k": 90}), root)
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "timings.jsonl"}
    assert after == before


def test_an_up_to_date_run_looks_at_no_checkpoint(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path / "files", tiny_pair_folder)
    scanned(study, tmp_path / "run")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the preflight ran")

    monkeypatch.setattr("datablame.models.pair.preflight", refuse)
    assert not scanned(study, tmp_path / "run")
