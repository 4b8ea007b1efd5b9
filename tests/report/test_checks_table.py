import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.fake_run import fake_study, write_fake_run

from datablame.engine.execute import Execution, Silent
from datablame.report.artifacts import Artifacts, read_artifacts
from datablame.report.run import run
from datablame.report.tables import checks_table


@pytest.fixture
def found(tmp_path: Path) -> Artifacts:
    study = fake_study()
    return read_artifacts(study, write_fake_run(tmp_path, study))


def test_what_an_arm_costs_stands_beside_its_limits(found: Artifacts) -> None:
    table = checks_table(found)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["untrained"] == ["3.000", "-", "0.0 %", "95.0 %", "0.125", "-", "yes"]
    assert rows["baseline (no removal)"] == ["3.000", "-", "0.0 %", "95.0 %", "0.125", "1.50", "yes"]
    assert rows["gradient"] == ["3.000", "+0.0 %", "1.0 % (+1.0)", "95.0 %", "0.125", "1.50", "yes"]
    assert rows["activation"] == ["3.300", "+10.0 %", "0.0 % (+0.0)", "95.0 %", "0.125", "1.50", "no"]
    assert len(rows["activation, continue"]) == len(table.header) - 1
    assert "perplexity is at most 2.0 % and refusals at most 3.0 %" in table.caption


def test_arms_at_another_k_than_the_headline_are_left_to_the_artifact(found: Artifacts) -> None:
    others = [row | {"k": 9} for row in found.checks["arms"] if row["k"]]
    more = replace(found, checks={**found.checks, "arms": [*found.checks["arms"], *others]})
    assert checks_table(more) == checks_table(found)


def test_a_check_that_could_not_be_made_is_named(found: Artifacts) -> None:
    absent = {"perplexity": "the pool leaves no document", "refusal": None}
    assert checks_table(replace(found, checks={**found.checks, "absent": absent})).caption.endswith(
        "No perplexity: the pool leaves no document."
    )


def test_the_table_is_on_every_page_and_absent_where_a_run_has_no_checks(tmp_path: Path) -> None:
    study = fake_study()
    for name in ("with", "without"):
        root = tmp_path / name
        inputs = write_fake_run(root, study)
        if name == "without":
            inputs.artifact("patch", "checks.json").unlink()
        run(study, inputs, root / "artifacts" / "report", Execution(1, 1), Silent())
        for page in ("comparison.md", "writeup/report.md", "index.html"):
            assert ("Side checks, mean over seeds" in (root / page).read_text()) == (name == "with"), page
        checks = json.loads((root / "final_results.json").read_text())["checks"]
        assert (checks is None) == (name == "without")
