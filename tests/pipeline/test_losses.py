"""What a run is told of its past: strays and copies change nothing, a change is named, torn files lose nothing."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small import ONE, small_study
from typer.testing import CliRunner

from datablame.cli.app import app
from datablame.config.file import dump_study, load_study
from datablame.config.schema import Study
from datablame.engine.execute import Progress, Silent
from datablame.engine.run_folder import LOCK, MANIFEST, STUDY, TIMINGS
from datablame.errors import DatablameError, RequestError
from datablame.pipeline.phases import NAMES, Status, open_run, status
from datablame.pipeline.run import run_study
from datablame.report.phase import DELIVERABLES

DONE = dict.fromkeys(("world", *NAMES), "done")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """A folder with checkpoints, files and a run in which every phase is done."""
    home = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_pair_folder, home / "pair")
    run_study(small_study(home / "files", home / "pair"), home / "run", execution=ONE, progress=Silent())
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """The same, moved elsewhere, with every time stamp another."""
    copy = Path(shutil.copytree(finished, tmp_path / "home"))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    return copy


def study_of(home: Path, **changes: Any) -> Study:
    """The study of a home whose files stay as they are."""
    files = {"data": {"path": str(home / "files/pool.jsonl")}, "truth": str(home / "files/truth.jsonl")}
    return small_study(home.parent / "other files", home / "pair", **files, **changes)


def looked(home: Path, **changes: Any) -> Status:
    return status(study_of(home, **changes), home / "run")


class Notes(Silent):
    """Progress of which the lines that stay are kept."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def note(self, text: str) -> None:
        self._notes.append(text)


def run_again(home: Path, only: str | None = None, progress: Progress | None = None, **changes: Any) -> list[str]:
    """Which phases ran."""
    study = study_of(home, **changes)
    skipped = run_study(study, home / "run", execution=ONE, progress=progress or Silent(), only=only)
    return [name for name, was_skipped in skipped.items() if not was_skipped]


def contents(home: Path) -> dict[str, bytes]:
    """What a run has found, its versions and times aside."""
    root, aside = home / "run", (LOCK, TIMINGS, MANIFEST, STUDY, "world.json")
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in aside}


def test_a_run_that_was_moved_with_all_it_names_is_done_and_nothing_runs_again(home: Path) -> None:
    before = contents(home)
    assert looked(home) == (DONE, {}, [], looked(home).world)
    assert run_again(home) == []
    assert contents(home) == before


def test_a_report_is_redacted_until_it_is_told_otherwise(home: Path) -> None:
    def reported(*options: str) -> bool:
        ended = CliRunner().invoke(app, ["report", str(home / "run"), *options])
        assert ended.exit_code == 1, ended.output  # The verdict is INVALID.
        return load_study(str(home / "run/study.yaml")).report.redact

    (home / "run/study.yaml").write_text(dump_study(study_of(home)))
    before = contents(home)
    assert [reported(*options) for options in ((), ("--redact",), (), ("--no-redact",))] == [False, True, True, False]
    # The page quotes study.yaml, which names the folder that the run was moved to.
    ours = [name for name in before if not name.endswith(("done.json", "index.html"))]
    assert {name: contents(home)[name] for name in ours} == {name: before[name] for name in ours}


STRAYS = {
    "run/.DS_Store": b"\0\0\0\1Bud1",
    "run/artifacts/attribute/.DS_Store": b"\0\0\0\1Bud1",
    "run/artifacts/patch/._arms.parquet": b"\0\5\x16\7",
    "run/notes.md": b"mine",
    "pair/after/.DS_Store": b"\0\0\0\1Bud1",
    "pair/after/._config.json": b"\0\5\x16\7\0\2\0\0",
    "pair/after/._model.safetensors": b"\0\5\x16\7\0\2\0\0Mac OS X",
    "pair/before/trainer_state.json": b"{}",
    "pair/before/eval_results.json": b"{}",
    "pair/before/README.md": b"# a model",
    "pair/before/requirements.txt": b"torch",
    "files/.DS_Store": b"\0\0\0\1Bud1",
}


def test_strays_beside_checkpoints_data_and_results_change_nothing(home: Path) -> None:
    for name, content in STRAYS.items():
        (home / name).write_bytes(content)
    before = contents(home)
    assert (looked(home).states, looked(home).why) == (DONE, {})
    assert run_again(home) == []
    assert contents(home) == before


def test_strays_that_were_there_when_a_phase_ended_are_no_output_of_it(home: Path) -> None:
    (home / "run/.DS_Store").write_bytes(b"one")
    (home / "run/notes.md").write_bytes(b"one")
    (home / "run/index.html").unlink()
    assert run_again(home) == ["report"]
    (home / "run/.DS_Store").unlink()
    (home / "run/notes.md").write_bytes(b"two")
    assert run_again(home) == []


def test_a_finished_run_has_its_deliverables_at_the_root_and_nothing_else(home: Path) -> None:
    root = home / "run"
    files = {str(path.relative_to(root)) for path in (*root.glob("*"), *root.glob("writeup/*")) if path.is_file()}
    assert files == {*DELIVERABLES, LOCK, TIMINGS, MANIFEST, STUDY}


def adapter_on(base: Path, folder: Path) -> None:
    """As far as its identity goes: a file of weights and a config that says where its base is."""
    folder.mkdir()
    shutil.copy(base / "model.safetensors", folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_an_adapter_whose_base_was_moved_is_the_same_and_one_of_another_rank_is_not(home: Path, tmp_path: Path) -> None:
    from datablame.world.identity import models_identity

    def identity(folder: Path) -> Any:
        models = study_of(home, models={"after": str(folder / "adapter")}).models
        assert models is not None
        return models_identity(models, models)["after"]

    for place in ("here", "there"):
        shutil.copytree(home / "pair" / "before", tmp_path / place / "base")
        adapter_on(tmp_path / place / "base", tmp_path / place / "adapter")
    assert identity(tmp_path / "here") == identity(tmp_path / "there")
    config = tmp_path / "there/adapter/adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 16'))
    assert identity(tmp_path / "here") != identity(tmp_path / "there")


def change_weights(home: Path) -> None:
    file = home / "pair/after/model.safetensors"
    content = bytearray(file.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1
    file.write_bytes(content)


def change_tokenizer(home: Path) -> None:
    file = home / "pair/before/tokenizer_config.json"
    file.write_text(file.read_text().rstrip() + "\n\n")


def change_data(home: Path) -> None:
    file = home / "files/pool.jsonl"
    file.write_text(file.read_text().replace("number 3 .", "number three ."))


def change_output(home: Path) -> None:
    (home / "run/artifacts/surface/rates.parquet").write_bytes(b"PAR1")


NAMED: list[tuple[Callable[[Path], Any], dict[str, Any], dict[str, str]]] = [
    (change_weights, {}, {"scan": "models.after.weights_sha256 was changed"}),
    (change_tokenizer, {}, {"surface": "models.before.settings.tokenizer_config.json was changed"}),
    (change_data, {}, {"attribute": "data.sha256 was changed", "report": "data.sha256 was changed"}),
    (change_output, {}, {"surface": "artifacts/surface/rates.parquet is missing or was changed"}),
    (
        lambda home: None,
        {"surface": {"samples": 7}, "title": "Walks"},
        {"surface": "surface.samples was 50 and is 7", "report": 'title was "" and is "Walks"'},
    ),
    (lambda home: None, {"patch": {"size": 12}}, {"patch": "patch.size was 10 and is 12"}),
    (
        lambda home: None,
        {"judge": {"classifier": "claude"}},
        {"scan": 'judge.classifier was "keywords" and is "claude"'},
    ),
]


@pytest.mark.parametrize(("change", "keys", "why"), NAMED)
def test_status_says_by_name_why_a_phase_is_stale(
    home: Path, change: Callable[[Path], Any], keys: dict[str, Any], why: dict[str, str]
) -> None:
    study = study_of(home, **keys)
    (home / "run/study.yaml").write_text(dump_study(study))
    change(home)
    seen = status(study, home / "run")
    for phase, reason in why.items():
        assert seen.states[phase] == "stale"
        assert reason in seen.why[phase]
    stale = {name for name, state in seen.states.items() if state == "stale"}
    assert set(seen.why) == stale
    shown = CliRunner().invoke(app, ["status", str(home / "run")]).stdout
    printed = CliRunner().invoke(app, ["status", str(home / "run"), "--json"]).stdout
    for phase, reason in why.items():
        assert f"{phase:10} stale; " in shown
        assert reason in shown
        assert reason in json.loads(printed)["why"][phase]


def test_what_runs_again_says_why(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_data(home)
    with caplog.at_level(logging.WARNING):
        assert run_again(home)[0] == "attribute"
    said = [record.getMessage() for record in caplog.records]
    assert "attribute runs again: data.sha256 was changed" in said


def test_a_run_without_its_models_and_data_is_done_and_can_be_reported(home: Path) -> None:
    assert run_again(home) == []
    before, study, elsewhere = contents(home), study_of(home), home.parent / "elsewhere"
    (home / "run/index.html").unlink()
    shutil.move(home / "run", elsewhere / "run")
    shutil.rmtree(home)
    seen = status(study, elsewhere / "run")
    assert seen.states == {**DONE, "report": "stale"}
    assert seen.absent == ["models.before", "models.after", "data", "truth"]
    shown = CliRunner().invoke(app, ["status", str(elsewhere / "run")]).stdout
    assert "not here   models.before, models.after, data, truth" in shown
    told = CliRunner().invoke(app, ["report", str(elsewhere / "run")])
    assert told.exception is None or isinstance(told.exception, SystemExit)
    assert (elsewhere / "run/index.html").stat().st_size > 10_000
    after = contents(elsewhere)
    # The page shows study.yaml, which has the paths of the copy by now.
    assert {name for name in before if before[name] != after[name]} <= {"index.html", "artifacts/report/done.json"}
    assert status(study, elsewhere / "run").states == DONE
    with pytest.raises(RequestError, match=r"truth = .* cannot be read"):
        run_study(study, elsewhere / "run", execution=ONE, progress=Silent())
    assert contents(elsewhere) == after


def test_a_report_of_a_changed_study_says_what_has_to_run_first(home: Path) -> None:
    with pytest.raises(
        RequestError,
        match=r"report needs surface, which is not done \(surface\.samples was 50 and is 7\); datablame surface",
    ):
        run_again(home, only="report", surface={"samples": 7})


TORN = ["", "\0\0\0\0", "[]", '{"format', '{"other": 1}', "\udcff"]


@pytest.mark.parametrize("text", TORN)
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("artifacts/attribute/done.json", "delete .*artifacts/attribute: then attribute runs again"),
        ("artifacts/world/world.json", "start over with --out NEW"),
        ("preregistration.json", "choose a new folder with --out"),
    ],
)
def test_a_torn_file_that_cannot_be_made_again_is_refused_by_name_and_nothing_is_lost(
    home: Path, name: str, remedy: str, text: str
) -> None:
    if name == "preregistration.json" and text.endswith("1}"):
        text = "{}"
    (home / "run" / name).write_bytes(text.encode(errors="surrogateescape"))
    before = contents(home)
    with pytest.raises(RequestError, match=f"{name} is torn, .*; restore it from a copy, or {remedy}") as refusal:
        run_again(home)
    assert "\n" not in str(refusal.value)
    assert contents(home) == before


@pytest.mark.parametrize("text", ["", "\0\0\0\0"])
@pytest.mark.parametrize("name", ["begun.json", "done.json"])
def test_a_torn_beginning_is_refused_and_its_journal_stays(home: Path, name: str, text: str) -> None:
    part = home / "run/artifacts/attribute.part"
    part.mkdir()
    (part / "journal.jsonl").write_text('{"key": "0", "payload": 1}\n')
    (part / name).write_text(text)
    change_data(home)
    with pytest.raises(RequestError, match=rf"attribute\.part/{name} is torn"):
        run_again(home)
    assert (part / "journal.jsonl").read_text() == '{"key": "0", "payload": 1}\n'


@pytest.mark.parametrize("content", [b"", b"\xff" * 400])
@pytest.mark.parametrize("name", ["pool.parquet", "pool.json", "prompts.parquet"])
def test_what_follows_from_the_study_is_made_again_where_it_is_torn(home: Path, name: str, content: bytes) -> None:
    before = contents(home)
    (home / "run/artifacts/world" / name).write_bytes(content)
    assert run_again(home) == []
    assert contents(home) == before


@pytest.mark.parametrize("name", ["manifest.json", "timings.jsonl"])
@pytest.mark.parametrize("content", [b"{", b'[1]\n\xff\xfe{\n{"what": 1, "seconds": "x"}\n\0'])
def test_torn_times_and_versions_stop_nothing(home: Path, name: str, content: bytes) -> None:
    (home / "run" / name).write_bytes(content)
    assert run_again(home) == []
    assert set(json.loads((home / "run/manifest.json").read_text())["phases"]) == {"world", *NAMES}


def test_a_run_that_goes_on_with_other_versions_says_so_and_forgets_none(home: Path) -> None:
    manifest = home / "run/manifest.json"
    now = json.loads(manifest.read_text())["versions"]
    for last in ("5.15.0", "5.20.0"):
        manifest.write_text(manifest.read_text().replace(now["transformers"], last))
        notes: list[str] = []
        run_again(home, only="report", progress=Notes(notes))
        assert notes == [
            f'warning: versions.transformers was "{last}" and is "{now["transformers"]}"; what is done stays as it was '
            "made, and manifest.json has both"
        ]
    assert json.loads(manifest.read_text())["earlier_versions"] == {"transformers": ["5.15.0", "5.20.0"]}
    assert json.loads(manifest.read_text())["versions"] == now


def test_a_table_that_is_torn_is_named_where_it_is_read(home: Path) -> None:
    (home / "run/artifacts/world/prompts.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        RequestError, match=r"prompts\.parquet is torn, .*; run again with --resume, which makes it anew"
    ):
        looked(home)
    (home / "run/artifacts/world/world.json").unlink()
    (home / "run/manifest.json").write_text('{"vers')
    with pytest.raises(RequestError, match="was written by datablame of an unknown version"):
        open_run(home / "run", study_of(home), resume=True)


def test_a_run_without_the_file_that_says_what_it_rests_on_is_of_no_other_version(home: Path) -> None:
    (home / "run/artifacts/world/world.json").unlink()
    with pytest.raises(
        RequestError, match=r"has finished phases, and artifacts/world/world\.json, .* is gone; restore"
    ):
        run_again(home)


def without(path: Path) -> None:
    path.unlink()


def garbled(path: Path) -> None:
    path.write_bytes(b"\0" * 2000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("harm", [without, garbled, emptied])
def test_a_pool_that_cannot_be_read_leaves_the_finished_phases_as_they_were(
    home: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], large: bool
) -> None:
    if large:  # Frozen before attribution only, as the hub's datasets are.
        monkeypatch.setattr("datablame.world.freeze._AT_ONCE_BYTES", -1)
    before, data = contents(home), home / "files/pool.jsonl"
    study, text = study_of(home), data.read_bytes()
    harm(data)
    with pytest.raises(DatablameError, match=r"data\.path = .*pool\.jsonl") as refusal:
        run_study(study, home / "run", execution=ONE, progress=Silent())
    assert "\n" not in str(refusal.value)
    assert contents(home) == before
    data.write_bytes(text)
    assert run_again(home) == []
