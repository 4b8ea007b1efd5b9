"""What a run says about its checkpoints, and what of them makes it stale."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.models.hub_cache import cached

from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import append_timing
from datablame.errors import RequestError
from datablame.pipeline.fingerprints import _part
from datablame.pipeline.run import _on_device, run_study, states
from datablame.study.schema import Study

OLD, NEW = "a" * 40, "b" * 40
ONE = Execution(workers=1, threads=1)


def study_of(before: Any, after: Any, **models: Any) -> Study:
    return Study.model_validate(
        {
            "name": "tiny",
            "models": {"before": before, "after": after, "device": "cpu", **models},
            "data": {"path": "unused.parquet"},
            "behaviours": [{"id": "walk", "description": "recommends a walk", "keywords": ["walk"]}],
            "prompts": {
                "attribution": [{"id": "a1", "behaviour": "walk", "text": "name a calm walk ."}],
                "held_out": [{"id": "h1", "behaviour": "walk", "text": "which walk ?"}],
            },
            "scan": {"samples": 1, "alphas": [0, 1]},
            "surface": {"max_new_tokens": 4},
            "judge": {"classifier": "keywords"},
        }
    )


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
    study, root = study_of({"path": "org/tiny", "revision": "sft"}, "org/tiny"), tmp_path / "run"
    assert scanned(study, root)
    models = manifest(root)["models"]
    assert (models["before"]["revision"], models["before"]["commit"]) == ("sft", OLD)
    assert (models["after"].get("revision"), models["after"]["commit"]) == (None, NEW)
    samples = (root / "artifacts/scan/samples.parquet").read_bytes()

    cached(hub, "org/tiny", tiny_pair_folder / "before", "c" * 40, "main")
    assert not scanned(study, root)
    shutil.rmtree(root / "artifacts")
    assert scanned(study, root)
    assert manifest(root)["models"]["after"]["commit"] == NEW
    assert (root / "artifacts/scan/samples.parquet").read_bytes() == samples

    assert scanned(study_of({"path": "org/tiny", "revision": "sft"}, {"path": "org/tiny", "revision": "c" * 40}), root)


def test_the_manifest_hashes_local_weights_and_names_the_device(tiny_pair_folder: Path, tmp_path: Path) -> None:
    study = study_of(*(str(tiny_pair_folder / name) for name in ("before", "after")))
    scanned(study, tmp_path / "run")
    told = manifest(tmp_path / "run")
    hashes = {told["models"][name]["weights_sha256"] for name in ("before", "after")}
    assert len(hashes) == 2
    assert None not in hashes
    assert told["machine"]["device"] == told["models"]["device"] == "cpu"
    assert told["phases"]["scan"]["peak_gpu_mb"] == 0

    assert not scanned(study, tmp_path / "run")
    assert manifest(tmp_path / "run")["models"] == told["models"]


def test_the_manifest_tells_the_seconds_of_every_method_that_ran(tiny_pair_folder: Path, tmp_path: Path) -> None:
    study, root = study_of(*(str(tiny_pair_folder / name) for name in ("before", "after"))), tmp_path / "run"
    scanned(study, root)
    assert manifest(root)["methods"] == {}
    for key, seconds in (("queries", 1.25), ("0", 2.25)):
        append_timing(root, "attribute/gradient", key, seconds)
    assert not scanned(study, root)
    assert manifest(root)["methods"] == {"gradient": {"seconds": 3.5}}


def test_what_does_not_fit_is_refused_before_the_first_phase(tiny_pair_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pair_folder, tmp_path / "pair"))
    template = folder / "before" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    study, root = study_of(str(folder / "before"), str(folder / "after")), tmp_path / "run"
    with pytest.raises(RequestError, match="the chat templates differ") as refusal:
        scanned(study, root)
    assert refusal.value.exit_code == 2
    assert states(study, root)[0] == ("scan", "missing")
    assert scanned(study_of(str(folder / "before"), str(folder / "after"), chat_template="after"), root)


def test_an_up_to_date_run_looks_at_no_checkpoint(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(*(str(tiny_pair_folder / name) for name in ("before", "after")))
    scanned(study, tmp_path / "run")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the preflight ran")

    monkeypatch.setattr("datablame.models.preflight.preflight", refuse)
    assert not scanned(study, tmp_path / "run")


def test_a_begun_phase_goes_on_where_it_began(tiny_pair_folder: Path, tmp_path: Path) -> None:
    study = study_of(*(str(tiny_pair_folder / name) for name in ("before", "after")))
    root = tmp_path / "run"
    scanned(study, root)
    out = root / "artifacts/scan"
    fingerprint = json.loads((out / "done.json").read_text())["fingerprint"]
    (out / "done.json").unlink()
    begun = {"fingerprint": fingerprint, "threads": 1, "device": "mps"}
    (out / "begun.json").write_text(json.dumps(begun))
    with pytest.raises(RequestError, match=r"^models\.device = mps: torch .* sees no such device"):
        scanned(study, root)
    del begun["device"]
    (out / "begun.json").write_text(json.dumps(begun))
    assert scanned(study, root)


@pytest.mark.parametrize(
    ("device", "said", "decided"), [("cuda:1", "auto", "none"), ("cpu", "auto", "bm25"), ("cuda", "bm25", "bm25")]
)
def test_where_a_phase_began_decides_whether_it_scores_the_whole_pool(
    device: str, said: str, decided: str, tiny_pair_folder: Path
) -> None:
    study = study_of(*(str(tiny_pair_folder / name) for name in ("before", "after")))
    study = study.model_copy(update={"prefilter": study.prefilter.model_copy(update={"method": said})})
    assert _on_device(study, device).prefilter.method == decided


def test_keys_that_are_not_used_leave_older_runs_up_to_date(tiny_pair_folder: Path, tmp_path: Path) -> None:
    """What a run folder of before these keys holds in its fingerprints: path, revision, dtype and the files' times."""
    before, after = (tiny_pair_folder / name for name in ("before", "after"))
    plain = study_of(str(before), str(after))
    assert _part("identity", plain, tmp_path)["models"] == [
        [
            {"path": str(folder), "revision": None, "dtype": "float32"},
            [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())],
        ]
        for folder in (before, after)
    ]
    assert not {"micro_batch", "beta"} & set(_part("patch", plain, tmp_path))
    patched = plain.model_copy(update={"patch": plain.patch.model_copy(update={"micro_batch": 2})})
    assert _part("patch", patched, tmp_path)["micro_batch"] == 2
    placed = study_of({"path": str(before), "device_map": "cpu"}, str(after), device="auto")
    assert _part("identity", placed, tmp_path) == _part("identity", plain, tmp_path)
    for other in (
        study_of({"path": str(before), "attn_implementation": "eager"}, str(after)),
        study_of(str(before), str(after), chat_template="before"),
    ):
        assert _part("identity", other, tmp_path) != _part("identity", plain, tmp_path)


def test_a_gguf_file_that_was_replaced_makes_a_run_stale(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    study = study_of(str(file), str(file))
    first = _part("identity", study, tmp_path)
    assert _part("identity", study, tmp_path) == first
    file.write_bytes(b"another")
    os.utime(file, (1, 1))
    assert _part("identity", study, tmp_path) != first
