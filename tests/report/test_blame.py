"""Blame by source and discovered groups in the report: tables, figure, hostile names."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.report.fake_run import HOSTILE, fake_study, read_results_file, reported, undrawn, write_fake_run
from tests.report.figure_rows import drawn_results, method_rows
from tests.report.test_figures import assert_readable, intervals, said
from tests.worlds import work

from datablame.engine.phase import Tables
from datablame.report.figures import sources_figure
from datablame.report.pages import text_tables
from datablame.report.phase import BLAME_PICTURE, FORMATS, report
from datablame.report.results import Results
from datablame.stats.intervals import auc_intervals
from datablame.tables import Blame

BEHAVIOURS = ("distractor", "dose", "brand")


def drawn(sources: int, methods: int = 5, names: Any = "flan/{}".format) -> Any:
    """Sources by falling AUC."""
    shown, rows = method_rows(methods), []
    aucs = np.linspace(0.9, 0.2, sources)
    low, high = auc_intervals(aucs, np.full(sources, 50.0), np.full(sources, 2000.0))
    for method in shown:
        for behaviour in BEHAVIOURS:
            for n in range(sources):
                ends = float(aucs[n]), float(low[n]), float(high[n])
                rows.append(Blame(method.name, behaviour, "source", names(n), 50, 0.02, *ends, 1, 1.0, 0.5, 2.0))
    made = drawn_results(methods=shown, blame=rows)
    return replace(made, attribution=replace(made.attribution, sources=sources))


@pytest.mark.parametrize("sources", [2, 40])
def test_the_figure_shows_the_first_sources_with_their_intervals_and_counts_the_others(sources: int) -> None:
    results = drawn(sources, methods=9)
    figure = sources_figure(results)
    assert figure is not None
    assert_readable(figure)
    first = results.blame[0]
    assert intervals(figure.axes[0], 0)[0] == pytest.approx((first.auc, first.low, first.high))
    assert len(intervals(figure.axes[0], 0)) == 6 * min(sources, 12)
    assert ("28 other sources of 40 are not shown" in said(figure)) == (sources == 40)
    assert "Not shown: activation similarity, centred, activation difference" in said(figure)


def test_names_that_are_long_or_hostile_or_empty_are_drawn_as_text() -> None:
    figure = sources_figure(drawn(3, names=("", HOSTILE, "$x^{2$" + "long" * 60).__getitem__))
    assert figure is not None
    assert_readable(figure)
    assert "(no name)" in said(figure)


def test_of_a_single_source_there_is_no_figure_and_it_is_said() -> None:
    assert sources_figure(drawn_results(methods=method_rows(2))) is None
    one = drawn_results(methods=method_rows(2))
    caption = text_tables(replace(one, attribution=replace(one.attribution, sources=1)))["blame"].caption
    assert "All documents come from one source" in caption


def test_a_picture_of_an_earlier_run_does_not_stay(tmp_path: Path) -> None:
    world = write_fake_run(tmp_path / "run", fake_study())
    root = reported(world)
    made = [root / f"{BLAME_PICTURE}.{form}" for form in FORMATS]
    assert all(path.exists() for path in made)
    with undrawn(), mock.patch("datablame.report.figures.sources_figure", return_value=None):
        report(world, Tables(root), work(root, "report"))
    assert not any(path.exists() for path in made)
    assert BLAME_PICTURE not in (root / "index.html").read_text() + (root / "writeup/report.md").read_text()


def test_tables_order_by_lower_ends_and_name_what_was_not_looked_for(results: Results) -> None:
    tables = text_tables(results)
    assert [row[:3] for row in tables["blame"].rows[:2]] == [
        ["dose", f"source {HOSTILE}", "10 (50.0 %)"],
        ["dose", "source ", "10 (50.0 %)"],
    ]
    assert tables["blame"].header[3:] == ["gradient", "activation", "llm-judge", "bm25"]
    assert tables["blame"].rows[0][3] == "0.75 [0.65, 0.85]; 1, lift 1.0 [0.2, 1.8]"
    assert tables["groups"].rows[0][:5] == ["1", "1", "4.5", "2.5", "<b>, dose"]
    assert "50 amplified outputs" in tables["groups"].caption
    assert "7 other outputs are left out" in tables["groups"].caption
    absent = replace(results, groups=[], attribution=replace(results.attribution, discovery=None))
    assert "not looked for" in text_tables(absent)["groups"].caption


def test_hostile_sources_stay_text_on_every_page(tmp_path: Path) -> None:
    root = reported(write_fake_run(tmp_path / "run", fake_study()))
    page, text = (root / "index.html").read_text(), (root / "writeup/report.md").read_text()
    assert "<script>alert" not in page + text
    assert "<img src=x" not in page + text
    line = next(line for line in text.splitlines() if "source &lt;script" in line)
    assert r"\[click\](javascript" in line
    assert r"\| cell \|" in line
    found = read_results_file(root)
    assert found["blame"][0]["group"] == HOSTILE
    assert (found["groups"]["outputs"], len(found["groups"]["groups"])) == (50, 1)
