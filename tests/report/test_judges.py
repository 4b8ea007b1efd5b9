"""Readers learn who judged, what was left without label or score and why, and when two judges are one."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.report.fake_run import fake_study, write_fake_run

from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import read_json, read_table, write_json, write_table
from datablame.report import figures, overview_figure, patching_figure
from datablame.report.run import run

MODEL, OTHER = "claude-haiku-5-5", "claude-sonnet-5-5"


def report(
    root: Path, *, classifier: str, unscored: dict[str, int], attribution: dict[str, Any] | None
) -> dict[str, Any]:
    """The results of a run whose first rows of samples have no label for these reasons."""
    study = fake_study()
    inputs = write_fake_run(root, study)
    path = root / "artifacts/surface/samples.parquet"
    reasons = [f"{reason}: detail" for reason, n in unscored.items() for _ in range(n)]
    rows = [{**row, "classifier": classifier} for row in read_table(path)]
    for row, reason in zip(rows, reasons, strict=False):
        row |= {"label": "unscored", "label_reason": reason}
    write_table(path, rows)
    write_json(root / "artifacts/judge.json", {"classifier": "claude" if classifier == MODEL else classifier})
    if attribution is not None:
        write_json(root / "artifacts/attribute/judge.json", attribution)
        methods = read_json(root / "artifacts/attribute/methods.json")
        methods["llm-judge"] |= {"standin": False, "label": f"llm-judge ({attribution['model']})"}
        write_json(root / "artifacts/attribute/methods.json", methods)
    run(study, inputs, root / "artifacts/report", Execution(1, 1), Silent())
    results: dict[str, Any] = read_json(root / "final_results.json")
    return results


@pytest.fixture(scope="module")
def by_claude(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(
        tmp_path_factory.mktemp("run"),
        classifier=MODEL,
        unscored={"the judge refused": 30, "the judge did not answer": 1},
        attribution={"model": OTHER, "asked": 60, "missing": {"the judge's reply was cut": 3}},
    )


def test_missing_labels_and_scores_are_counted_by_reason(by_claude: dict[str, Any]) -> None:
    schema = json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text())
    jsonschema.validate(by_claude, schema)
    assert by_claude["judge"] == {
        "classifier": MODEL,
        "attribution": OTHER,
        "unscored": {"surface": {"the judge did not answer": 1, "the judge refused": 30}, "patch": {}},
        "attribution_asked": 60,
        "attribution_missing": {"the judge's reply was cut": 3},
    }
    told = "\n".join(by_claude["limitations"])
    assert "outputs have no label (1 because the judge did not answer and 30 because the judge refused)" in told
    assert "more than 2.0 %, so that the rates may be biased" in told
    assert "3 of 60 questions about documents have no score (3 because the judge's reply was cut)" in told


def test_judges_of_one_family_are_a_limitation(by_claude: dict[str, Any]) -> None:
    assert any(f"are {MODEL} and {OTHER}, both Claude" in text for text in by_claude["limitations"])
    assert not any("stand-in" in text or "keywords" in text for text in by_claude["limitations"])


def test_one_unscored_output_is_told_but_no_bias(tmp_path: Path) -> None:
    results = report(tmp_path, classifier=MODEL, unscored={"the judge refused": 1}, attribution=None)
    (told,) = [text for text in results["limitations"] if "have no label" in text]
    assert told.startswith("1 of ")
    assert "biased" not in told


@pytest.mark.parametrize(
    ("classifier", "words"), [("keywords", "keywords, a stand-in for a judge"), (MODEL, MODEL), ("rules", "rules")]
)
def test_every_caption_and_page_names_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: str, words: str
) -> None:
    captions = []
    for module in (figures, overview_figure, patching_figure):

        def page(width: float, height: float, title: str, caption: str, drawn: Any = module.page) -> Any:
            captions.append(caption)
            return drawn(width, height, title, caption)

        monkeypatch.setattr(module, "page", page)
    results = report(tmp_path, classifier=classifier, unscored={}, attribution=None)
    assert len(captions) == 3
    assert all(f"Labelled by: {words}." in caption for caption in captions)
    for name in ("comparison.md", "writeup/report.md", "index.html"):
        assert words in (tmp_path / name).read_text().replace("\\", ""), name
    assert results["study"]["classifier"] == classifier
    shared = [text for text in results["limitations"] if "go by the same keywords" in text]
    assert bool(shared) == (classifier == "keywords")
