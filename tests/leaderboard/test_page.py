"""The page and the figures say what the standings say, at any size, whatever names are brought."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.leaderboard.made import KINDS, made

from datablame.leaderboard.figures import figures_of, kinds_figure, pareto_figure
from datablame.leaderboard.page import csv_of, readme_of, write
from datablame.leaderboard.standings import Leaderboard, as_json, standings_of
from datablame.leaderboard.studies import Organism

HOSTILE = "=cmd|' /C calc'!A0 $x^2$ <script>alert(1)</script> | [link](javascript:x)\n# heading " + "x" * 80


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return made(6, labels={1: HOSTILE}, failures={Organism("few", 9): "memory ran out"})


def test_the_csv_has_a_line_for_each_method_and_organism_and_censored_is_no_number(board: Leaderboard) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_of(board))))
    assert len(rows) == 6 * len(board.organisms)
    first = next(row for row in rows if row["method"] == "method-0")
    assert (first["halved_at"], first["scored"], first["why"]) == ("20", "3", "")
    assert {row["halved_at"] for row in rows if row["method"] == "method-2"} == {"> 60"}
    missing = [row for row in rows if row["method"] == "method-5" and row["kind"] == "conceptual"]
    assert {(row["drop"], row["why"]) for row in missing} == {("", "no safe output to set the harmful ones against")}


def test_results_json_is_strict_json_with_counts_of_what_is_censored(board: Leaderboard) -> None:
    content = json.loads(json.dumps(as_json(board), allow_nan=False))
    of = {row["name"]: row for row in content["standings"]}
    assert of["method-2"]["halving"] == {"median": None, "interval": [None, None], "censored": 15, "n": 15, "most": 60}
    assert of["method-5"]["missing"] == {"no safe output to set the harmful ones against": 5}
    assert (of["method-0"]["ranks"], of["method-0"]["beats_not"]) == ({"drop": 1, "average_precision": 1}, [])
    assert of["method-5"]["beats_not"] == ["method-2"]
    assert content["failures"] == {"few-9": "memory ran out"}


def test_the_page_names_winner_missing_values_failures_and_what_beats_no_control(board: Leaderboard) -> None:
    page = readme_of(board)
    assert "`method-0` is beaten by no other method" in page
    assert "`method-5`: no safe output to set the harmful ones against (5 of 15)" in page
    assert "few-9 (memory ran out)" in page
    assert "`method-5`" not in page.split("Where all fail")[0].split("**What to use.**")[1].split("\n")[0]
    assert "<script>" not in page
    assert "\\[link\\](javascript" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    unescaped = [line.replace("\\|", "").count("|") for line in lines]
    assert set(unescaped) == {12, 4}


def test_what_holds_for_every_method_of_an_organism_is_said_once() -> None:
    board = made(4, failures={Organism("lexical", 1): "memory ran out"})
    assert board.silent == {Organism("lexical", 1): "no safe output to set the harmful ones against"}
    page = readme_of(board)
    assert page.count("On lexical-1 no method has a rate: no safe output to set the harmful ones against.") == 1
    assert [dict(each.missing) for each in board.standings if each.entry.name != "method-3"] == [{}, {}, {}]


def test_a_stand_in_is_named_and_recommended_to_nobody() -> None:
    board = made(4)
    cheapest = min(board.standings, key=lambda each: each.estimates["seconds"].value)
    others = [each for each in board.standings if each is not cheapest]
    page = readme_of(
        replace(board, standings=[replace(cheapest, entry=replace(cheapest.entry, standin=True)), *others])
    )
    assert f"**Stand-ins.** `{cheapest.entry.name}`" in page
    assert f"best at each cost is `{cheapest.entry.name}`" not in page


def test_what_has_a_value_on_few_organisms_stands_after_its_equals() -> None:
    # One seed: all are tied; the best of them has a value on one organism of three.
    board = made(4, KINDS[:3], seeds=[1])
    best = board.standings[0].entry.name
    rows = [
        replace(row, drop=None, rate=None, why="it flagged nothing")
        if (row.method, row.kind != KINDS[0]) == (best, True)
        else row
        for row in board.results
    ]
    again = standings_of([each.entry for each in board.standings], rows, {})
    assert [each.entry.name for each in again] == [each.entry.name for each in board.standings[1:]] + [best]


def test_what_does_not_beat_chance_is_not_recommended_however_cheap() -> None:
    board = made(6)
    cheapest, *others = sorted(board.standings, key=lambda each: each.estimates["seconds"].value)
    assert cheapest.is_pareto
    assert f"best at each cost is `{cheapest.entry.name}`" in readme_of(board)
    for spoiled in (
        replace(cheapest, beats_not=("random",)),
        replace(cheapest, entry=replace(cheapest.entry, name="random")),
    ):
        page = readme_of(replace(board, standings=[spoiled, *others]))
        assert f"best at each cost is `{spoiled.entry.name}`" not in page


def test_what_takes_twice_the_seconds_and_has_no_more_effect_is_named() -> None:
    """method-1 takes 1.4 times as long, 3 and 4 more than twice; of these 4 ranks what was planted higher here."""
    board = made(6)
    rows = [replace(row, average_precision=1.0) if row.method == "method-4" else row for row in board.results]
    rows = [replace(row, average_precision=0.5) if row.method == "method-0" else row for row in rows]
    standings = standings_of([each.entry for each in board.standings], rows, {})
    page = " ".join(readme_of(replace(board, results=rows, standings=standings)).split())
    assert "`method-3` and `method-4` take at least twice the seconds of `method-0` and do not beat it" in page
    assert "in average precision `method-4` does." in page
    rows = [replace(row, seconds=None) if row.method in ("method-0", "method-3") else row for row in rows]
    standings = standings_of([each.entry for each in board.standings], rows, {})
    assert "**What more cost does not buy.**" not in readme_of(replace(board, results=rows, standings=standings))


def test_one_seed_has_no_interval_and_a_page_without_any_value_is_written(tmp_path: Path) -> None:
    assert "With one seed there is none" in readme_of(made(4, seeds=[7]))
    write(made(1, KINDS[:1]), tmp_path)
    assert "No method has a value" in (tmp_path / "README.md").read_text()
    names = {f"{name}.{end}" for name in ("ranks", "effect_and_cost", "kinds") for end in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "README.md", "results.csv", "results.json"}


def test_figures_draw_every_method_with_its_interval_and_mark_controls_and_what_is_missing() -> None:
    board = made(6, labels={1: HOSTILE})
    [heat], [cost] = kinds_figure(board).axes, pareto_figure(board).axes
    numbers = {text.get_text() for text in heat.texts}
    assert "-" in numbers
    assert {"italic", "normal"} == {label.get_fontstyle() for label in heat.get_yticklabels()}
    named = {text.get_text(): text for text in cost.texts}
    assert len(named) == 6
    assert [text.get_fontweight() for name, text in named.items() if name == "the method 0"] == ["bold"]
    ranks = figures_of(board)["ranks"]
    assert [len(axes.containers) for axes in ranks.axes] == [6, 6]


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "kinds"), [(5, 3), (25, 9)])
def test_figures_of_any_size_are_drawn_alike_twice(tmp_path: Path, methods: int, kinds: int) -> None:
    names = [*KINDS, "pairs", "integrated"][:kinds]
    for folder in ("one", "two"):
        write(made(methods, names, labels={0: HOSTILE}), tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
