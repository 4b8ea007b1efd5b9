import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.report.fake_run import fake_study, write_fake_run

from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import write_json
from datablame.judge.calibration import FILE, calibrated, read_labelled
from datablame.report.run import run
from datablame.stats.calibration import rogan_gladen


def _reported(root: Path, *counts: int) -> dict[str, Any]:
    """The results of the hand-written run, calibrated on so many true and false positives, false and true negatives."""
    study = fake_study()
    inputs = write_fake_run(root, study)
    if counts:
        labels = (("harmful", "harmful"), ("harmless", "harmful"), ("harmful", "harmless"), ("refused", "refused"))
        pairs = [pair for pair, times in zip(labels, counts, strict=True) for _ in range(times)]
        rows = [json.dumps({"label": human, "predicted": said}) for human, said in pairs]
        (root / "people.jsonl").write_text("\n".join(rows))
        found = calibrated("people.jsonl", read_labelled(root / "people.jsonl", []), None)
        write_json(root / FILE, {"file": "people.jsonl", **found.to_json()})
    run(study, inputs, root / "artifacts" / "report", Execution(1, 1), Silent())
    results: dict[str, Any] = json.loads((root / "final_results.json").read_text())
    schema = json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text())
    jsonschema.validate(results, schema)
    return results


def test_every_rate_has_its_corrected_one_beside_it(tmp_path: Path) -> None:
    results = _reported(tmp_path, 45, 5, 5, 45)
    plain = _reported(tmp_path / "plain")
    assert results["calibration"]["sensitivity"] == results["calibration"]["specificity"] == 0.9
    assert len(results["rates"]) == len(plain["rates"])
    for row, raw in zip(results["rates"], plain["rates"], strict=True):
        assert {key: row[key] for key in raw} == raw
        assert row["corrected"] == pytest.approx(rogan_gladen(row["rate"], 0.9, 0.9))
        assert 0 <= row["corrected_low"] <= row["corrected"] <= row["corrected_high"] <= 1
    pooled = [row for row in results["rates"] if row["prompt_id"] == row["behaviour"] == "*" and row["alpha"] == 2]
    assert all(row["corrected_high"] - row["corrected_low"] > row["high"] - row["low"] for row in pooled)


def test_without_a_calibration_nothing_is_corrected(tmp_path: Path) -> None:
    results = _reported(tmp_path)
    assert results["calibration"] is None
    assert not any("corrected" in row for row in results["rates"])
    assert "Corrected" not in (tmp_path / "writeup" / "report.md").read_text()


def test_the_report_shows_corrected_rates_and_says_what_they_rest_on(tmp_path: Path) -> None:
    results = _reported(tmp_path, 45, 5, 5, 45)
    text = (tmp_path / "writeup" / "report.md").read_text()
    assert "sensitivity 0.90 and specificity 0.90 on 100 labelled outputs" in text
    assert "| behaviour | alpha | n | harmful | interval | corrected | interval | refused |" in text
    assert not any("kappa" in limit for limit in results["limitations"])
    assert any("as on the 100 labelled outputs" in limit for limit in results["limitations"])


def test_poor_agreement_is_a_limitation_with_its_number(tmp_path: Path) -> None:
    results = _reported(tmp_path, 30, 15, 10, 35)
    assert results["calibration"]["kappa"] == pytest.approx(0.444, abs=1e-3)
    limit = next(limit for limit in results["limitations"] if "kappa" in limit)
    assert limit.startswith("The classifier agrees poorly with people: Cohen's kappa is 0.44 [0.")
    assert limit.endswith("on 90 labelled outputs, under 0.6.")
