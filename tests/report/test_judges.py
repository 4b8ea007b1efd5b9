"""Readers learn who judged, what was left without label or score and why, and when two judges are one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from tests.report.fake_run import fake_study, read_results_file, reported, results_of, undrawn, write_fake_run
from tests.worlds import put

from datablame.judge.choice import Choice
from datablame.report import figures as drawing
from datablame.tables import Attribution, JudgeAnswers, MethodInfo, SurfaceSample

MODEL, OTHER = "claude-haiku-5-5", "claude-sonnet-5-5"


def results(
    root: Path,
    classifier: str,
    unscored: Mapping[str, int] | None = None,
    answers: JudgeAnswers | None = None,
    *,
    drawn: bool = False,
) -> dict[str, Any]:
    """The results of a run whose first samples have no label for these reasons."""
    world = write_fake_run(root, fake_study())
    held = results_of(world)
    samples = [replace(row, classifier=classifier) for row in held.samples]
    reasons = [f"{reason}: detail" for reason, n in (unscored or {}).items() for _ in range(n)]
    lost = [replace(row, label="unscored", label_reason=why) for row, why in zip(samples, reasons, strict=False)]
    put(root, "surface", {SurfaceSample: [*lost, *samples[len(lost) :]]})
    if answers is not None:
        put(root, "attribute", {Attribution: replace(held.attribution, judge=answers)})
        asked: dict[str, Any] = {"standin": False, "label": f"llm-judge ({answers.model})"}
        methods = [replace(m, **asked) if m.standin else m for m in held.methods.values()]
        put(root, "attribute", {MethodInfo: methods})
    kind: Any = "claude" if classifier == MODEL else classifier
    reported(replace(world, judge=Choice(kind, "keywords")), drawn=drawn)
    return read_results_file(root)


@pytest.fixture(scope="module")
def by_claude(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results(
        tmp_path_factory.mktemp("run"),
        MODEL,
        {"the judge refused": 30, "the judge did not answer": 1},
        JudgeAnswers(OTHER, 60, {"the judge's reply was cut": 3}),
    )


def test_missing_labels_and_scores_are_counted_by_reason(by_claude: dict[str, Any]) -> None:
    assert by_claude["judge"] == {
        "classifier": MODEL,
        "attribution": OTHER,
        "unscored": {"surface": {"the judge did not answer": 1, "the judge refused": 30}, "patch": {}},
        "attribution_requests": 60,
        "attribution_missing": {"the judge's reply was cut": 3},
    }
    limits = "\n".join(by_claude["limitations"])
    assert "outputs have no label (1 because the judge did not answer and 30 because the judge refused)" in limits
    assert "more than 2.0 %, so that the rates may be biased" in limits
    assert "3 of 60 questions about documents have no score (3 because the judge's reply was cut)" in limits


def test_judges_of_one_family_are_a_limitation(by_claude: dict[str, Any]) -> None:
    assert any(f"are {MODEL} and {OTHER}, both Claude" in text for text in by_claude["limitations"])
    assert not any("stand-in" in text or "keywords" in text for text in by_claude["limitations"])


def test_one_unscored_output_is_told_but_no_bias(tmp_path: Path) -> None:
    limits = results(tmp_path, MODEL, {"the judge refused": 1})["limitations"]
    (limit,) = [text for text in limits if "have no label" in text]
    assert limit.startswith("1 of ")
    assert "biased" not in limit


@pytest.mark.parametrize(
    ("classifier", "words"), [("keywords", "keywords, a stand-in for a judge"), (MODEL, MODEL), ("rules", "rules")]
)
def test_every_picture_and_page_names_the_classifier(tmp_path: Path, classifier: str, words: str) -> None:
    with undrawn() as figures:
        found = results(tmp_path, classifier, drawn=True)
    for name, figure in figures.items():
        (call,) = figure.call_args_list
        picture = getattr(drawing, name)(*call.args)
        said = " ".join(text.get_text() for text in picture.findobj(Text))
        assert f"Labelled by: {words}." in " ".join(said.split()), name
    assert len(figures) == 4
    for name in ("comparison.md", "writeup/report.md", "index.html"):
        assert words in (tmp_path / name).read_text().replace("\\", ""), name
    assert found["study"]["classifier"] == classifier
    shared = [text for text in found["limitations"] if "go by the same keywords" in text]
    assert bool(shared) == (classifier == "keywords")
