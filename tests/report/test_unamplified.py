import json
from pathlib import Path
from typing import Any

import pytest
from tests.report.fake_run import fake_study, write_fake_run

from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import read_json, write_json
from datablame.report.artifacts import Artifacts, read_artifacts
from datablame.report.figures import behavior_rates
from datablame.report.run import run
from datablame.report.unamplified_marks import estimates_caption, highest
from datablame.report.unamplified_table import unamplified_table

TITLES = {"dose": "unsafe dose", "brand": "brand promotion"}


def row(behaviour: str, split: str = "held-out", **changed: Any) -> dict[str, Any]:
    importance = {
        "rate": 0.0012,
        "low": 0.0008,
        "high": 0.0019,
        "n": 400,
        "harmful": 90,
        "ess": 181.4,
        "largest_weight_share": 0.0144,
        "harmful_ess": 40.0,
        "khat": 0.31,
        "withheld": None,
    }
    return {
        "behaviour": behaviour,
        "split": split,
        "naive": {"rate": 0.0, "low": 0.0, "high": 0.037, "n": 100},
        "importance": importance | changed.get("importance", {}),
        "path": {"rate": 0.02, "low": 0.01, "high": 0.04, "alphas": [1.0, 2.0], "withheld": None}
        | changed.get("path", {}),
    }


NO_FIGURE = {"rate": None, "low": None, "high": None}
HEAVY = row("brand", importance={**NO_FIGURE, "khat": 0.92, "withheld": "k-hat 0.92 is above 0.7"})
BENT = row(
    "*", path={**NO_FIGURE, "withheld": "brand: the line gives 20.0 % at alpha 0, where 1 of 100 outputs are harmful"}
)


def estimates(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"possible": True, "why_not": None, "rows": list(rows)}


def found_with(root: Path, unamplified: dict[str, Any]) -> Artifacts:
    study = fake_study()
    inputs = write_fake_run(root, study)
    write_json(inputs.artifact("surface", "unamplified.json"), unamplified)
    return read_artifacts(study, inputs)


def test_the_table_gives_the_figure_or_the_reason_never_both(tmp_path: Path) -> None:
    table = unamplified_table(found_with(tmp_path, estimates(row("dose", "attribution"), row("dose"), HEAVY, BENT)))
    assert [cells[0] for cells in table.rows] == [
        "all, held-out",
        "dose, held-out",
        "brand, held-out",
        "dose, attribution",
    ]
    every, dose, brand, _ = table.rows
    assert dose[1:] == [
        "0.0 % [0.0, 3.7] of 100",
        "0.12 % [0.1, 0.2]",
        "181 of 400",
        "1.4 %",
        "0.31",
        "2.0 % [1.0, 4.0]",
    ]
    assert brand[2] == "withheld: k-hat 0.92 is above 0.7"
    assert brand[5] == "0.92"
    assert every[6].startswith("withheld: brand: the line gives 20.0 %")


def test_the_table_says_why_there_are_no_estimates(tmp_path: Path) -> None:
    why_not = "surface.top_p = 0.9: outputs then don't come from it"
    table = unamplified_table(found_with(tmp_path, {"possible": False, "why_not": why_not, "rows": []}))
    assert table.rows == []
    assert why_not in table.caption


def test_a_run_folder_without_estimates_is_read(tmp_path: Path) -> None:
    study = fake_study()
    inputs = write_fake_run(tmp_path, study)
    inputs.artifact("surface", "unamplified.json").unlink()
    assert read_artifacts(study, inputs).unamplified["possible"] is False


def test_the_caption_names_every_withheld_estimate() -> None:
    caption = estimates_caption(estimates(row("dose"), HEAVY, BENT), TITLES)
    assert "IS of brand promotion (held-out prompts)" in caption
    assert "path of all behaviours (held-out prompts)" in caption
    assert "unsafe dose" not in caption
    assert estimates_caption(estimates(row("dose")), TITLES).endswith("None is withheld.")
    assert estimates_caption({"possible": False, "why_not": "x", "rows": []}, TITLES) == ""


def test_withheld_estimates_are_not_drawn_and_the_others_are(tmp_path: Path) -> None:
    found = found_with(tmp_path, estimates())
    options: dict[str, Any] = {"title": "t", "classifier": "c", "behaviours": TITLES}

    def drawn(*rows: dict[str, Any]) -> bytes:
        # One caption for all, so that only marks differ.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datablame.report.figures.estimates_caption", lambda *_: "")
            return behavior_rates(list(found.rates), unamplified=estimates(*rows), **options)

    bare: dict[str, Any] = {"importance": {**NO_FIGURE, "withheld": "w"}, "path": {**NO_FIGURE, "withheld": "w"}}
    none = drawn(row("dose", **bare))
    assert drawn(row("dose", importance=bare["importance"])) != none
    assert drawn(row("dose", path=bare["path"])) != none
    assert drawn(row("dose", **bare)) == none


def test_an_interval_above_all_measured_ones_stays_inside() -> None:
    assert highest([row("dose", path={"rate": 0.5, "low": 0.2, "high": 0.9})]) == 0.9
    assert highest([]) == 0


def test_results_of_both_phases_hold_the_artifact_as_it_is(tmp_path: Path) -> None:
    study = fake_study()
    inputs = write_fake_run(tmp_path, study)
    run(study, inputs, tmp_path / "artifacts" / "report", Execution(1, 1), Silent())
    artifact = read_json(inputs.artifact("surface", "unamplified.json"))
    assert len(artifact["rows"]) == 6
    for name in ("phase2_results.json", "final_results.json"):
        assert json.loads((tmp_path / name).read_text())["unamplified"] == artifact
    for name in ("comparison.md", "writeup/report.md", "index.html"):
        assert "The rate at alpha 0, three times" in (tmp_path / name).read_text()
