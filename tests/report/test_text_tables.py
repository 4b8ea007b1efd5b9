"""Tables of text say what rows say: side checks, and the rate at alpha 0."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.report.fake_run import estimate, fake_study, read_results_file, reported, write_fake_run

from datablame.report.pages import TextTable, text_tables
from datablame.report.results import Results
from datablame.tables import Unamplified, UnamplifiedRate

PAGES = ("comparison.md", "writeup/report.md", "index.html")


def checks(results: Results) -> TextTable:
    table = text_tables(results)["checks"]
    assert isinstance(table, TextTable)
    return table


def test_what_an_arm_costs_stands_beside_its_limits(results: Results) -> None:
    table = checks(results)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["after"] == ["3.000", "-", "0.0 %", "95.0 %", "0.125", "-", "yes"]
    assert rows["baseline (no removal)"] == ["3.000", "-", "0.0 %", "95.0 %", "0.125", "1.50", "yes"]
    assert rows["gradient"] == ["3.000", "+0.0 %", "1.0 % (+1.0)", "95.0 %", "0.125", "1.50", "yes"]
    assert rows["activation"] == ["3.300", "+10.0 %", "0.0 % (+0.0)", "95.0 %", "0.125", "1.50", "no"]
    assert len(rows["activation, continue"]) == len(table.header) - 1
    assert "perplexity is at most 2.0 % and refusals at most 3.0 %" in table.caption


def test_arms_at_another_k_than_the_headline_are_left_to_the_table(results: Results) -> None:
    others = [replace(check, k=9) for check in results.arm_checks if check.k]
    assert checks(replace(results, arm_checks=[*results.arm_checks, *others])) == checks(results)


def test_a_check_that_could_not_be_made_is_named(results: Results) -> None:
    assert results.patching is not None
    design = replace(results.patching.checks, absent={"perplexity": "the pool leaves no document", "refusal": None})
    absent = replace(results, patching=replace(results.patching, checks=design))
    assert checks(absent).caption.endswith("No perplexity: the pool leaves no document.")


def test_the_table_is_on_every_page_and_absent_where_no_arm_was_trained(tmp_path: Path) -> None:
    for surfaced in (True, False):
        root = reported(write_fake_run(tmp_path / str(surfaced), fake_study(), surfaced=surfaced))
        for page in PAGES:
            assert ("Side checks, mean over seeds" in (root / page).read_text()) == surfaced, page
        assert bool(read_results_file(root)["checks"]["arms"]) == surfaced


NO_FIGURE: dict[str, Any] = {"rate": None, "low": None, "high": None}


def unamplified(results: Results, *rows: UnamplifiedRate, why_not: str | None = None) -> TextTable:
    table = text_tables(replace(results, unamplified=Unamplified(why_not is None, why_not, rows)))["unamplified"]
    assert isinstance(table, TextTable)
    return table


def test_the_rate_at_alpha_0_is_a_figure_or_a_reason_never_both(results: Results) -> None:
    heavy = estimate("brand", **NO_FIGURE, khat=0.92, withheld="k-hat 0.92 is above 0.7")
    table = unamplified(results, estimate("dose", "attribution"), estimate("dose"), heavy, estimate("*"))
    assert [cells[0] for cells in table.rows] == [
        *("all, held-out", "dose, held-out", "brand, held-out", "dose, attribution")
    ]
    _, dose, brand, _ = table.rows
    assert dose[1:] == ["0.0 % [0.0, 3.7] of 100", "0.12 % [0.1, 0.2]", "181 of 400", "1.4 %", "0.31"]
    assert (brand[2], brand[5]) == ("withheld: k-hat 0.92 is above 0.7", "0.92")


def test_the_table_says_why_there_are_no_estimates(results: Results) -> None:
    why_not = "surface.top_p = 0.9: outputs then don't come from it"
    table = unamplified(results, why_not=why_not)
    assert table.rows == []
    assert why_not in table.caption


def test_results_of_both_phases_hold_the_estimates_as_they_are(results: Results, tmp_path: Path) -> None:
    root = reported(write_fake_run(tmp_path, fake_study()))
    rows = [asdict(row) for row in results.unamplified.rows]
    assert len(rows) == 6
    assert read_results_file(root)["unamplified"] == {"possible": True, "why_not": None, "rows": rows}
    for name in PAGES:
        assert "The rate at alpha 0, twice" in (root / name).read_text()
