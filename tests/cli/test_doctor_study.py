"""`doctor STUDY` shows in one screen what a run would take a study's checkpoints and pool for."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from tests.pairs import study_of
from typer.testing import CliRunner

from datablame.cli.app import app, main
from datablame.world import freeze

ROWS = [{"prompt": f"name walk {n} .", "completion": f"the park , number {n * n} ."} for n in range(60)]
POOL = [
    *ROWS,
    {"prompt": "name a loud walk .", "completion": None},
    {"prompt": "name a long walk .", "completion": "the hill .", "note": "of a reader"},
]


@pytest.fixture(scope="module")
def study(tiny_pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in POOL), encoding="utf-8")
    fields = study_of(tiny_pair_folder / "before", tiny_pair_folder / "after").model_dump(exclude_unset=True)
    fields["data"] = {"path": str(folder / "pool.jsonl")}
    fields |= {"attribute": {"top_k": 5}, "patch": {"k": 5, "size": 20}}
    fields["behaviours"][0]["keywords"] = ["walk"]
    (folder / "study.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return folder / "study.yaml"


def _norm_of_difference(folder: Path, name: str) -> float:
    """As two reads of the files have it."""
    tensors = []
    for side in ("before", "after"):
        with safe_open(folder / side / "model.safetensors", "pt") as file:
            tensors.append(file.get_tensor(name).double())
    return float((tensors[1] - tensors[0]).norm())


def test_one_screen_says_what_was_found(study: Path) -> None:
    shown = CliRunner().invoke(app, ["doctor", str(study), "--workers", "1"], catch_exceptions=False)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert 10 <= len(lines) <= 40
    assert [line.split()[0] for line in lines if line and line[0] != " "] == [
        *("tiny:", "before", "after", "tokens", "turns"),
        *["weights"] * sum(line.startswith("weights") for line in lines),
        *("apart", "pool"),
    ]
    assert "pool.jsonl: 62 rows, 61 documents; 1 left out: " in shown.stdout
    assert "text of note is in no document (1 row)" in shown.stdout
    assert sorted(study.parent.iterdir()) == [study.parent / "pool.jsonl", study]


def test_its_json_holds_the_same_facts(study: Path, tiny_pair_folder: Path) -> None:
    shown = CliRunner().invoke(app, ["doctor", str(study), "--workers", "1", "--json"], catch_exceptions=False)
    facts = json.loads(shown.stdout)
    apart = {layer["layer"]: layer["difference"] for layer in facts["distance"]["layers"]}
    expected = _norm_of_difference(tiny_pair_folder, "model.embed_tokens.weight")
    assert apart["model.embed_tokens"] == pytest.approx(expected, rel=1e-4)
    (file,) = facts["data"]["files"]
    assert (file["rows"], file["documents"], [rows["count"] for rows in file["skipped"]]) == (62, 61, [1])
    assert facts["data"]["unread"] == {"note": 1}
    assert set(facts) == {"study", "models", "coverage", "tokens", "chat", "distance", "data"}


def test_of_a_pool_too_large_to_be_read_at_once_the_first_rows_are_shown(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "_AT_ONCE_BYTES", 10)
    for module in ("cli.study", "world.ingest"):
        monkeypatch.setattr(f"datablame.{module}.FIRST_ROWS", 7)
    shown = CliRunner().invoke(app, ["doctor", str(study), "--workers", "1"], catch_exceptions=False)
    assert "pool.jsonl: 7 rows, 7 documents" in shown.stdout
    assert "the first 7 rows only; the whole pool is read when attribution begins" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "seed=1"], "--set needs a study to look at; datablame doctor STUDY"),
        (["--workers", "2"], "--workers needs a study to look at; datablame doctor STUDY"),
        (["organism", "--out", "x"], "--out has no use beside STUDY, of which nothing is kept; remove one of them"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["datablame", "doctor", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"datablame: {message}"


def test_what_a_run_would_refuse_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    equal = yaml.safe_load(study.read_text(encoding="utf-8"))
    equal["models"]["after"] = equal["models"]["before"]
    file = study.with_name("equal.yaml")
    file.write_text(yaml.safe_dump(equal), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["datablame", "doctor", str(file), "--workers", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    file.unlink()
    assert ended.value.code == 2
    assert "has the same weights as models.before" in capsys.readouterr().err.splitlines()[-1]
