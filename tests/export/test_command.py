"""datablame export as people meet it: one line for a mistake, a folder whole or not there."""

import json
from pathlib import Path

import pytest
from tests.shell import asked

from datablame.engine.files import write_json
from datablame.errors import RequestError
from datablame.export import KINDS, export
from datablame.world import World


def test_it_says_what_was_written_and_what_was_left_out(surfaced: World, tmp_path: Path) -> None:
    plain = f"export {surfaced.root} --to csv --out a"
    shown = f"export {surfaced.root} --to csv --out b --no-redact --json"
    told = asked([plain, shown], tmp_path)
    assert told[plain].stdout.splitlines() == [
        *("a", f"3 files; {len(surfaced.prompts)} texts hidden, --no-redact shows them"),
        *("left out: attribute (missing)", "left out: patch (missing)"),
    ]
    assert "secret" not in (tmp_path / "a/surface_samples.csv").read_text()
    assert json.loads(told[shown].stdout) == {
        **{"to": "csv", "where": "b", "files": 3, "redacted": False, "hidden": 0},
        "left_out": {"attribute": "missing", "patch": "missing"},
    }
    assert "secret" in (tmp_path / "b/surface_samples.csv").read_text()


def test_an_empty_folder_is_filled_and_another_one_left_alone(surfaced: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(surfaced.root, "parquet", out=tmp_path / "empty")
    held = {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    with pytest.raises(RequestError, match=r"--out .*empty holds something"):
        export(surfaced.root, "csv", out=tmp_path / "empty")
    assert {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == held
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


def test_an_export_that_fails_leaves_no_folder_and_the_next_one_is_whole(
    surfaced: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(OSError, match="No space"):
            export(surfaced.root, "parquet", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(surfaced.root, "parquet", out=tmp_path / "out").files == 3
    assert not (tmp_path / "out.part").exists()


MISTAKES = {
    "--to excel --out o": f"--to excel is no format; choose one of {', '.join(KINDS)}",
    "--to csv": "--to csv writes a folder; give it by --out DIR",
    "--to csv --out o --repo a/b": "--to csv writes a folder; give it by --out DIR, and drop --repo",
    "--to hub": "--to hub writes a private dataset of the hub; name it by --repo OWNER/NAME",
    "--to hub --repo a/b --out o": "--to hub writes a private dataset of the hub",
    "--to hub --repo a": "--repo a is no OWNER/NAME of the hub",
    "--to hub --repo a/b": "--to hub needs a token of the hub that may write; set HF_TOKEN",
}


def test_a_mistake_is_one_line_and_exit_code_2(surfaced: World, tmp_path: Path) -> None:
    commands = {f"export {surfaced.root} {words}": told for words, told in MISTAKES.items()}
    for command, answer in asked(commands, tmp_path).items():
        assert (answer.returncode, answer.stdout) == (2, ""), command
        assert answer.stderr.startswith(f"datablame: {commands[command]}")
        assert answer.stderr.count("\n") == 1
    assert not list(tmp_path.glob("o*"))


def test_a_run_that_is_not_far_enough_is_refused(surfaced: World, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere .*run|nowhere holds no"):
        export(tmp_path / "nowhere", "csv", out=tmp_path / "out")
    done = surfaced.root / "artifacts/surface/done.json"
    held = json.loads(done.read_text())
    try:
        write_json(done, {**held, "dependencies": {**held["dependencies"], "version": 0}})
        with pytest.raises(RequestError, match="the phase surface is stale; finish it with datablame run --resume"):
            export(surfaced.root, "csv", out=tmp_path / "out")
    finally:
        write_json(done, held)
    assert not list(tmp_path.iterdir())


def test_without_inspect_it_says_how_to_get_it(
    surfaced: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"needs inspect-ai.*pip install 'datablame\[inspect\]'"):
        export(surfaced.root, "inspect", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
