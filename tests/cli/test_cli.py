"""The command line as people and shells meet it: exit codes, one line for a mistake, nothing lost."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.shell import Answer, asked

_SMALL = {
    "name": "small",
    "organism": {"recipe": "templated", "seed": 0, "scale": 0.1},
    "patch": {"arms": ["after", "baseline", "random"]},
}


def _datablame(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "datablame", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_answers_without_the_heavy_imports(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['datablame', '--help']; from datablame.cli.app import main\n"
    code += "try: main()\nexcept SystemExit: print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


MISTAKES = {
    "run organsm": "STUDY = organsm is neither a file nor a preset; did you mean organism?",
    "run missing.yaml": "missing.yaml: cannot be read",
    "run organism --set surface.alphas=[1]": "organism: surface.alphas = [1.0] lacks 0",
    "run organism --until surfce": "--until surfce is not a phase; choose one of scan, surface",
    "run organism --set attribute.methods=[x]": "organism: attribute.methods = x is not a method",
    "plan organism --set patch.arms=[after]": "organism: patch.arms lacks one of after, baseline",
    "run organism --set patch.size": "--set patch.size: not of the form section.key=value",
    "status nowhere": "nowhere holds no study.yaml; datablame run STUDY --out nowhere begins one",
    "scan nowhere": "nowhere holds no study.yaml",
    "organism make new --recipe magic": "organism.recipe = 'magic': input should be 'templated' or 'quirk'",
    "organism make new --recipe quirk --planting few": "organism.planting = few is of the recipe templated",
    "leaderboard --kinds few,nope": "--kinds nope is no kind of planting; choose from",
    "leaderboard --seeds 1,-2": "--seeds -2 is no whole number",
    "leaderboard --seeds 1,1": "--seeds 1,1 names nothing, or one of them twice",
    "leaderboard --methods nope": "attribute.methods = nope is not a method",
    "leaderboard --scores mine": "--scores mine is no NAME=PATTERN",
    "leaderboard --scores mine=nowhere/{kind}-{seed}.jsonl": "matches no file; the first that was looked for is",
    "leaderboard --scores mine=one.jsonl": "--scores mine=one.jsonl is one file for several organisms",
    "leaderboard --only-report": "holds no finished study of this request",
    "leaderboard --set patch.headline=continue --set patch.protocols=[continue]": "set patch.headline to retrain",
}
LISTS = ("run organsm --debug", "presets --json", "presets organism", "methods --json")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What commands say that write nothing."""
    folder = tmp_path_factory.mktemp("shell")
    told = asked([*MISTAKES, *LISTS], folder)
    assert list(folder.iterdir()) == []
    return told


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_writes_nothing(command: str, answers: dict[str, Answer]) -> None:
    code, _, stderr = answers[command]
    assert code == 2
    assert MISTAKES[command] in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback(answers: dict[str, Answer]) -> None:
    code, _, stderr = answers["run organsm --debug"]
    assert code == 2
    assert "Traceback" in stderr


def test_a_run_folder_is_not_continued_unasked(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(_SMALL))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.yaml").write_text(yaml.safe_dump(_SMALL))
    result = _datablame("run", "small.yaml", "--out", "run", cwd=tmp_path)
    assert result.returncode == 2
    assert "run holds a run of small; --resume continues it" in result.stderr


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("mine")
    result = _datablame("run", "organism", "--out", "thesis", cwd=tmp_path)
    assert result.returncode == 2
    assert "thesis holds files but no study.yaml; choose an empty folder" in result.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.md"]


def test_status_says_missing_before_the_first_phase(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(_SMALL))
    result = _datablame("status", ".", "--json", cwd=tmp_path)
    states = dict.fromkeys(["world", "scan", "surface", "attribute", "patch", "report"], "missing")
    assert json.loads(result.stdout) == {**states, "why": {}, "not_here": []}


def test_a_phase_asked_for_too_early_names_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(_SMALL))
    result = _datablame("patch", ".", cwd=tmp_path, DATABLAME_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 2
    assert "patch needs scan, which is not done; datablame scan ." in result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("file/run", "file/run: is below a file, not a folder; choose another --out"),
        ("link/run", "link: is a link to a place that is not there; mount its disk, or choose another --out"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, out: str, problem: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "link").symlink_to(tmp_path / "not mounted")
    result = _datablame("run", "organism", "--out", out, cwd=tmp_path)
    assert result.returncode == 1
    assert problem in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


_FULL = """
import os, sys, errno
def full(descriptor): raise OSError(errno.ENOSPC, "No space left on device", "artifacts.part")
os.fsync = full
sys.argv = ["datablame", "run", "organism", "--out", "run", "--set", "organism.scale=0.1", "--set", "patch.size=50"]
from datablame.cli.app import main
main()
"""


@pytest.mark.slow
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", _FULL], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    *progress, message = result.stderr.strip().splitlines()  # A slow machine shows how far it came.
    assert message == (
        "datablame: artifacts.part: the disk is full; make room and run again with --resume. "
        "What was finished stays usable."
    )
    assert all(re.match(r"(world|organism): ", line) for line in progress)


def test_presets_print_themselves(answers: dict[str, Answer]) -> None:
    assert {"organism", "smollm2"} <= set(json.loads(answers["presets --json"].stdout))
    assert yaml.safe_load(answers["presets organism"].stdout)["name"] == "organism"


def test_methods_are_described(answers: dict[str, Answer]) -> None:
    rows = json.loads(answers["methods --json"].stdout)
    assert {row["name"] for row in rows} >= {"gradient", "activation", "llm-judge", "bm25"}
