"""Figures go into a paper as they are: at its width, size and font, in each format, whatever names a study has."""

import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from tests.report.figure_rows import drawn_study, unamplified, unamplified_row
from tests.report.test_figures import SUMMARY, assert_readable, said, words

from datablame.errors import RequestError
from datablame.report.figures import overview_figure, patching_figure, pictures, rates_figure, sources_figure
from datablame.report.phase import FORMATS
from datablame.report.results import Results

HOSTILE = (
    "costs $5 and $x^{2$ \x1b[31m <script>alert(1)</script> ]]> --> &amp;\x00\ud800\n\n\u202ereversed שלום 中文 🐕 "
    "\\frac{ javascript:x "
)
LONG = {f"b{number}": f"a behaviour whose name goes on for sixty letters, number {number}" for number in range(8)}
DRAWN: dict[str, Callable[[Results], Figure | None]] = {
    "behavior_rates": rates_figure,
    "patching_comparison": patching_figure,
    "final_results": lambda results: overview_figure(results, "PARTIAL", SUMMARY),
    "blame_by_source": sources_figure,
}
PAPERS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "one column": {"width": 3.25, "size": 4.8, "font": "DejaVu Sans Mono"},
    "poster": {"width": 24, "size": 16, "font": "DejaVu Serif", "caption": False},
}
SVG = {
    *("svg", "title", "metadata", "RDF", "Work", "type", "format", "description", "defs", "style", "g", "path", "use"),
    *("clipPath", "rect", "pattern"),
}
"""What our figures are made of."""


def drawn(name: str, results: Results) -> Figure:
    figure = DRAWN[name](results)
    assert figure is not None
    return figure


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("paper", PAPERS)
def test_no_words_touch_and_none_leave_the_page_on_any_paper(paper: str, name: str) -> None:
    named = "{0} with a name that goes on for sixty letters to {0}".format
    sizes: dict[str, Any] = {"behaviours": LONG, "seeds": {"retrain": 10, "continue": 4}, "ks": (20, 5), "named": named}
    rare = unamplified(unamplified_row("b1"))
    assert_readable(drawn(name, drawn_study(15, **sizes, unamplified=rare, figures=PAPERS[paper])))


@pytest.mark.parametrize("name", DRAWN)
def test_the_study_says_width_size_and_font(name: str) -> None:
    figure = drawn(name, drawn_study(4, figures={"width": 6.5, "size": 9, "font": "DejaVu Serif"}))
    assert figure.get_size_inches()[0] == (13 if name == "final_results" else 6.5)
    assert {text.get_fontfamily()[0] for text in words(figure)} == {"DejaVu Serif"}
    assert {text.get_fontsize() for text in words(figure)} >= {9, 9 * 0.833}


def test_a_page_is_laid_out_the_same_at_any_size() -> None:
    small, large = (drawn("patching_comparison", drawn_study(4, figures=it)) for it in ({}, {"width": 14, "size": 16}))
    assert large.get_size_inches() == pytest.approx(2 * small.get_size_inches())
    for one, other in zip(small.axes, large.axes, strict=True):
        assert other.get_position().bounds == pytest.approx(one.get_position().bounds, abs=0.01)


def test_without_a_caption_the_page_is_lower_and_the_files_still_say_it() -> None:
    given: dict[str, Any] = {"title": "What a paper calls otherwise"}
    whole, bare = (drawn("final_results", drawn_study(4, **given, figures={"caption": it})) for it in (True, False))
    assert whole.get_size_inches()[1] > bare.get_size_inches()[1] + 0.5
    made = pictures(bare, FORMATS)
    for text in ("What a paper calls otherwise", "Labelled by: rules."):
        assert text in said(whole)
        assert text not in said(bare)
        assert text.encode() in made["svg"]
        assert text.encode() in made["png"]
    assert b"/Title (What a paper calls otherwise)" in made["pdf"]
    assert b"/Subject" in made["pdf"]


def test_a_font_that_is_not_here_is_refused_where_it_is_drawn_too() -> None:
    with pytest.raises(RequestError, match=r"figures\.font = Nope is none of the fonts that matplotlib finds here"):
        rates_figure(drawn_study(3, figures={"font": "Nope"}))


def hashes() -> str:
    made = pictures(drawn("patching_comparison", drawn_study(4)), FORMATS)
    return " ".join(hashlib.sha256(made[form]).hexdigest() for form in FORMATS)


def test_equal_rows_give_equal_bytes_in_any_process_whatever_matplotlibrc_says() -> None:
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "pink", "savefig.dpi": 50, "pdf.fonttype": 3}):
        here = hashes()
    there = subprocess.run(
        [sys.executable, "-c", "from tests.report.test_paper import hashes; print(hashes())"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "7"},
    )
    assert there.stdout.strip() == here


def test_a_pdf_holds_its_type_a_png_says_300_dots_an_inch_and_none_tells_when_it_was_made() -> None:
    made = pictures(drawn("blame_by_source", drawn_study(4)), FORMATS)
    assert b"/FontFile2" in made["pdf"]
    assert b"/Type3" not in made["pdf"]
    assert struct.unpack(">II", made["png"][16:24])[0] == 7 * 300
    assert struct.unpack(">IIB", made["png"].partition(b"pHYs")[2][:9]) == (11811, 11811, 1)
    assert b"<text" not in made["svg"]
    for trace in (mpl.__version__.encode(), b"CreationDate", b"dc:date"):
        assert not [form for form, picture in made.items() if trace in picture]


@pytest.mark.parametrize("name", DRAWN)
def test_hostile_words_of_a_megabyte_are_only_words(name: str) -> None:
    text = HOSTILE + "x" * 1_000_000
    titles, rare = dict.fromkeys(("distractor", "dose"), text), unamplified(unamplified_row("dose", rate=None))
    given: dict[str, Any] = {"title": text, "classifier": text, "behaviours": titles, "intervention": "swap"}
    figure = drawn(name, drawn_study(3, ks=(20, 5), named=lambda _: text, unamplified=rare, **given))
    assert_readable(figure)
    assert "costs $5 and $x^{2$" in said(figure)
    assert {"\u202e", "\x1b", "\x00", "\ud800"}.isdisjoint(said(figure))
    made = pictures(figure, FORMATS)
    assert max(map(len, made.values())) < 4_000_000
    assert {element.tag.partition("}")[2] for element in ElementTree.fromstring(made["svg"]).iter()} <= SVG
    assert b"<script" not in made["svg"]
