import csv
import html.parser
import json
import re
import struct
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from tests.report.fake_run import fake_study, write_fake_run

from datablame.engine.execute import Execution, Silent
from datablame.report.run import run

_DELIVERABLES = (
    *("behavior_rates.png", "patching_comparison.png", "final_results.png", "phase2_results.json"),
    *("final_results.json", "patching_comparison.csv", "comparison.md", "case_study.md", "index.html"),
    *("writeup/report.md", "writeup/slides.md"),
)


def _report(root: Path, *, surfaced: bool = True, **patch: object) -> Path:
    study = fake_study(**patch)
    inputs = write_fake_run(root, study, surfaced=surfaced)
    run(study, inputs, root / "artifacts" / "report", Execution(1, 1), Silent())
    return root


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _report(tmp_path_factory.mktemp("run"))


def test_every_deliverable_is_written_and_pictures_are_pictures(reported: Path) -> None:
    for name in _DELIVERABLES:
        assert (reported / name).stat().st_size > 200, name
    for name in _DELIVERABLES[:3]:
        data = (reported / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert min(width, height) > 500


def test_the_results_keep_to_the_published_schema(reported: Path) -> None:
    schema = json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text())
    results = json.loads((reported / "final_results.json").read_text())
    jsonschema.validate(results, schema)
    assert results["verdict"]["label"] == "SUCCESS"
    assert len([row for row in results["patching"] if row["headline"]]) == 6


def test_the_table_has_the_promised_columns_and_its_rates_are_its_counts(reported: Path) -> None:
    with (reported / "patching_comparison.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert ",".join(reader.fieldnames or ()) == (
        "arm,protocol,k,seed,behaviour,prompt_id,split,alpha,n,harmful,refused,harmless,incoherent,unscored,rate,low,high"
    )
    for row in rows:
        assert float(row["rate"]) == pytest.approx(int(row["harmful"]) / (int(row["n"]) - int(row["unscored"])))
    assert {row["split"] for row in rows} == {"attribution", "held-out"}


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_hostile_texts_are_inert_in_the_page(reported: Path) -> None:
    text = (reported / "index.html").read_text()
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for name, value in page.attributes if name == "href" and "javascript" in (value or "")]
    assert all(value.startswith("data:image/png") for name, value in page.attributes if name == "src" and value)
    assert "default-src 'none'" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "http://" not in text


@pytest.mark.parametrize("name", ["case_study.md", "comparison.md", "writeup/report.md", "writeup/slides.md"])
def test_hostile_texts_are_inert_in_markdown(reported: Path, name: str) -> None:
    text = (reported / name).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert not re.search(r"^# heading", text, re.MULTILINE)


def test_equal_artifacts_give_equal_bytes(reported: Path, tmp_path: Path) -> None:
    again = _report(tmp_path)
    for name in _DELIVERABLES:
        assert (again / name).read_bytes() == (reported / name).read_bytes(), name


def test_nothing_surfaced_is_reported_as_such(tmp_path: Path) -> None:
    root = _report(tmp_path, surfaced=False)
    results = json.loads((root / "final_results.json").read_text())
    schema = json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text())
    jsonschema.validate(results, schema)
    assert "No harmful output was found, so that nothing was traced and no document is blamed." in results["findings"]
    assert "Nothing was removed, so that no arm was trained." in results["findings"]
    assert "No harmful output was found" in (root / "case_study.md").read_text()


def test_one_seed_gets_no_p_value_and_is_called_a_single_run(tmp_path: Path) -> None:
    root = _report(tmp_path, seeds=[0])
    results = json.loads((root / "final_results.json").read_text())
    rows = {row["arm"]: row for row in results["patching"] if row["headline"]}
    assert rows["gradient"]["to_random"]["p"] is None
    assert rows["gradient"]["to_random"]["why_no_p"] == "fewer than 4 training seeds"
    assert any("a single run, which shows no more than a direction" in text for text in results["findings"])
    assert any("retrain was run with one training seed" in text for text in results["limitations"])


def test_the_keyword_classifier_and_the_stand_in_are_named(reported: Path) -> None:
    limits = json.loads((reported / "final_results.json").read_text())["limitations"]
    assert any(text.startswith("Outputs were labelled by keywords") for text in limits)
    assert any(text.startswith("llm-judge is a stand-in") for text in limits)
    assert any(text.startswith("2 rows of the data could not be used: 2 because of: no messages") for text in limits)


def test_the_first_row_of_each_broken_kind_is_shown(reported: Path) -> None:
    assert "no messages" in (reported / "writeup" / "report.md").read_text()
    assert "<td>no messages</td><td>2</td><td>&lt;script&gt;alert(1)" in (reported / "index.html").read_text()
