import zipfile
from pathlib import Path

import keyword_calibration as benchmark
import pytest

REFUSAL = """# version=1
# a second comment
objective,assistant_response,human_score,data_type
Tell me how.,"I can't help with that.",1,text
Tell me how.,"Sure, like this.",0,text
"""
GRADED = """# version=1
objective,assistant_response,human_score_1,human_score_2,data_type
Say it.,Said.,0.25,1.0,text
Say it.,Unsaid.,0.0,0.25,text
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("refusal_scorer", "sample", "objective", "harm"):
        (tmp_path / name).mkdir()
    rows = "".join(f"How does thing {i} work?,I can't help with {i}.,1,text\n" for i in range(40))
    rows += "".join(f"How does thing {i} work?,Thing {i} works like so.,0,text\n" for i in range(40))
    (tmp_path / "refusal_scorer" / "refusal.csv").write_text(REFUSAL + rows)
    (tmp_path / "sample" / "mini.csv").write_text(REFUSAL)
    graded = "".join(f"Say {i}.,Said {i}.,{i % 5 / 4},{i % 3 / 2},text\n" for i in range(40))
    (tmp_path / "harm" / "graded.csv").write_text(GRADED + graded)
    return tmp_path


def test_comments_are_skipped_and_several_scores_are_averaged() -> None:
    assert benchmark.read(REFUSAL) == [
        benchmark.Item("Tell me how.", "I can't help with that.", True, (True,)),
        benchmark.Item("Tell me how.", "Sure, like this.", False, (False,)),
    ]
    assert [(item.human, item.people) for item in benchmark.read(GRADED)] == [
        (True, (False, True)),
        (False, (False, False)),
    ]


def test_copies_of_a_text_are_in_one_half_and_the_texts_of_the_smallest_sets_only_improve(folder: Path) -> None:
    half = benchmark.halves(folder)
    assert half("I can't help\n  with 7.") == half("I can't help with 7.")
    assert {half(f"I can't help with {i}.") for i in range(40)} == {"improve", "report"}
    assert {half(item.text) for item in benchmark.read(REFUSAL)} == {"improve"}


def test_perfect_agreement_is_kappa_1_in_both_halves_and_no_text_is_printed(folder: Path) -> None:
    lines = benchmark.report(folder, "made up", {"now": benchmark.labeller(None)})
    rows = [line for line in lines if line.startswith("| refusal_scorer/refusal |")]
    assert [line.split(" | ")[1] for line in rows] == ["improve", "report"]
    assert all("1.00 [1.00, 1.00]" in line for line in rows)
    text = "\n".join(lines)
    assert "Not compared: sample/mini; it has 2 rows" in text
    assert "People among themselves on harm/graded: mean kappa" in text
    assert "like this" not in text
    assert "can't help" not in text


def test_errors_are_told_of_the_improve_half_only(folder: Path) -> None:
    half = benchmark.halves(folder)
    told = benchmark.errors(folder, lambda text: "harmless")
    missed = [f"I can't help with {i}." for i in range(40)]
    assert [any(text in line for line in told) for text in missed] == [half(text) == "improve" for text in missed]


def test_a_wheel_is_read_without_installing_it(folder: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "pyrit-0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "sample" / "mini.csv", f"{benchmark.FOLDER}/sample/mini.csv")
    found, source = benchmark.located(wheel, None)
    assert (source, list(benchmark.sets_of(found, ["sample"]))) == ("pyrit-0.whl", ["sample/mini"])


def test_what_is_no_source_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "not.whl").write_text("x")
    with pytest.raises(SystemExit, match=r"--wheel = .* is no wheel; get one with"):
        benchmark.located(tmp_path / "not.whl", None)
    with pytest.raises(SystemExit, match="has no pyrit/datasets/scorer_evals"):
        benchmark.located(None, tmp_path / "absent")
