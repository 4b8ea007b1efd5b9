from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.report.fake_run import fake_study, read_results_file, reported, write_fake_run
from tests.report.rows import calibration
from tests.worlds import put

from datablame.stats.calibration import Accuracy, kappa, rogan_gladen
from datablame.tables import Calibration, Confusion


def _reported(root: Path, *counts: int) -> dict[str, Any]:
    """The results of the hand-written run, calibrated on so many true and false positives, false and true negatives."""
    world = write_fake_run(root, fake_study())
    if counts:
        confusion = Confusion(*counts)
        accuracy = Accuracy(**asdict(confusion))
        rates = {"sensitivity": accuracy.sensitivity.rate, "specificity": accuracy.specificity.rate}
        found = calibration(counts=confusion, n=sum(counts), kappa=kappa(accuracy), **rates)
        put(root, "world", {Calibration: found})
    reported(world)
    return read_results_file(root)


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
    assert limit.startswith("The classifier agrees poorly with people: Cohen's kappa is 0.44 [0.70, 0.90] ")
    assert limit.endswith("on 90 labelled outputs, under 0.6.")
