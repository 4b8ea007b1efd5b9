import csv
import json
import re
import struct
from pathlib import Path

import pytest
from tests.report.fake_run import fake_study, read_results_file, write_fake_run
from tests.report.fake_run import reported as report

from datablame.engine.phase import Tables
from datablame.report.phase import deliver_patch, deliver_surface

_FIGURES = ("behavior_rates", "patching_comparison", "final_results", "blame_by_source")
_DELIVERABLES = (
    *(f"{name}.{form}" for name in _FIGURES for form in ("png", "svg", "pdf")),
    *("phase2_results.json", "final_results.json", "patching_comparison.csv", "comparison.md", "case_study.md"),
    *("index.html", "writeup/report.md", "writeup/slides.md"),
)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(write_fake_run(tmp_path_factory.mktemp("run"), fake_study()), drawn=True)


def test_every_deliverable_is_written_and_pictures_are_pictures(reported: Path) -> None:
    for name in _DELIVERABLES:
        assert (reported / name).stat().st_size > 200, name
    for name in _FIGURES:
        data = (reported / f"{name}.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert (width, height > 500) == ((14 if name == "final_results" else 7) * 300, True)
        assert (reported / f"{name}.svg").read_text().startswith("<?xml")
        assert (reported / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_results_keep_to_the_published_schema(reported: Path) -> None:
    results = read_results_file(reported)
    assert results["verdict"]["label"] == "SUCCESS"
    assert len([row for row in results["patching"] if row["headline"]]) == 6


def test_programs_find_rows_under_their_names(reported: Path) -> None:
    results = read_results_file(reported)
    gradient = results["attribution"]["gradient"]
    assert set(gradient["by_pool"]) == {"whole", "candidates"}
    assert [row["behaviour"] for row in gradient["by_behaviour"]] == ["dose", "brand"] * 2
    assert gradient["precision_at_k"] == gradient["by_pool"]["whole"]["precision_at_k"]
    assert set(results["flagged"]) == set(results["attribution"])
    assert {behaviour: len(ids) for behaviour, ids in results["flagged"]["gradient"].items()} == {"dose": 2, "brand": 2}
    assert results["themes"]["themes"][0]["flagged"] == {"gradient": 0.5, "bm25": None}
    assert results["pool"]["skipped_rows"]["no messages"]["count"] == 2
    assert results["exposure"]["rows"][0] == {
        **{"arm": "random", "protocol": "retrain", "k": 2, "seed": 0},
        **{"removed": 4, "seen_in_baseline": 1.0, "seen_in_arm": 0},
    }
    surfaced = json.loads((reported / "phase2_results.json").read_text())
    assert surfaced["focus_prompts"] == ["dose-a0"]
    assert len(surfaced["samples"]) == 480
    assert "token_ids" not in surfaced["samples"][0]


def test_phases_deliver_what_they_promise_before_the_report(reported: Path, tmp_path: Path) -> None:
    world = write_fake_run(tmp_path, fake_study())
    deliver_surface(world, Tables(tmp_path), tmp_path / "early")
    deliver_patch(world, Tables(tmp_path), tmp_path / "early")
    names = {path.name for path in (tmp_path / "early").iterdir()}
    figures = {f"{name}.{form}" for name in _FIGURES[:2] for form in ("png", "svg", "pdf")}
    assert names == {"phase2_results.json", "patching_comparison.csv", *figures}
    for name in names:
        assert (tmp_path / "early" / name).read_bytes() == (reported / name).read_bytes(), name


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


@pytest.mark.parametrize("name", ["case_study.md", "comparison.md", "writeup/report.md", "writeup/slides.md"])
def test_hostile_texts_are_inert_in_markdown(reported: Path, name: str) -> None:
    text = (reported / name).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert not re.search(r"^# heading", text, re.MULTILINE)


def test_equal_tables_give_equal_bytes(reported: Path, tmp_path: Path) -> None:
    again = report(write_fake_run(tmp_path, fake_study()), drawn=True)
    for name in _DELIVERABLES:
        assert (again / name).read_bytes() == (reported / name).read_bytes(), name


def test_nothing_surfaced_is_reported_as_such(tmp_path: Path) -> None:
    root = report(write_fake_run(tmp_path, fake_study(), surfaced=False), drawn=True)
    results = read_results_file(root)
    assert "No harmful output was found, so that nothing was traced and no document is blamed." in results["findings"]
    assert "Nothing was removed, so that no arm was trained." in results["findings"]
    assert "No harmful output was found" in (root / "case_study.md").read_text()


def test_one_seed_gets_no_p_value_and_is_called_a_single_run(tmp_path: Path) -> None:
    root = report(write_fake_run(tmp_path, fake_study(seeds=[0])))
    results = read_results_file(root)
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


def test_the_largest_cluster_is_named(reported: Path) -> None:
    text = (reported / "writeup" / "report.md").read_text()
    assert "20 documents in 20 duplicate clusters, the largest of 2 (first: &lt;i&gt;doc-00)" in text
    largest = json.loads((reported / "final_results.json").read_text())["pool"]["largest_cluster"]
    assert largest == {"documents": 2, "first": "<i>doc-00"}


def test_the_first_row_of_each_broken_kind_is_shown(reported: Path) -> None:
    assert "no messages" in (reported / "writeup" / "report.md").read_text()
    assert "<td>no messages</td><td>2</td><td>&lt;script&gt;alert(1)" in (reported / "index.html").read_text()
