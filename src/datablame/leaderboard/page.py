"""A leaderboard as files: results.csv, results.json, its figures, and a page in words."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from datablame.engine.files import write_atomic
from datablame.leaderboard.results import LEAST_DROP, Result, plain, values
from datablame.leaderboard.standings import DETECTION, EFFECT, Halving, Leaderboard, Standing, as_json
from datablame.report.wording import filled, listed, number
from datablame.stats.intervals import Interval
from datablame.stats.standings import Estimate, Values, beats

FIGURES = ("ranks", "effect_and_cost", "kinds")
_POOR = 0.5
"""A kind where no method has this share of the oracle's effect is one where all fail."""
_CHANCE = "random"
_FORMULAS = "=+-@\t\r"


class Dearer(NamedTuple):
    """What costs at least twice as much as a method that no other beats in effect."""

    cheapest: Standing
    no_better: Sequence[Standing]
    """In effect."""
    detect: Sequence[Standing]
    """Those that beat it in average precision."""


def write(board: Leaderboard, folder: Path) -> None:
    """Write every file of a leaderboard into a folder, each whole."""
    from datablame.leaderboard.figures import figures_of
    from datablame.report.figures import pictures

    write_atomic(folder / "results.csv", csv_of(board))
    write_atomic(folder / "results.json", json.dumps(as_json(board), indent=1, allow_nan=False) + "\n")
    for name, figure in figures_of(board).items():
        for form, picture in pictures(figure, ("png", "svg")).items():
            write_atomic(folder / f"{name}.{form}", picture)
    write_atomic(folder / "README.md", readme_of(board))


def csv_of(board: Leaderboard) -> str:
    """One line for each method on each organism; a text that a spreadsheet would take for a formula is quoted."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Result)], lineterminator="\n")
    writer.writeheader()
    for row in board.results:
        shown = {name: _rounded(value) for name, value in plain(row).items()}
        shown["why"] = f"'{row.why}" if row.why[:1] in _FORMULAS and row.why else row.why
        writer.writerow(shown)
    return buffer.getvalue()


def _rounded(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def readme_of(board: Leaderboard) -> str:
    """The page: who wins where and by how much, where all fail, what to use at which cost."""
    text = resources.files("datablame.leaderboard").joinpath("templates/README.md.j2").read_text(encoding="utf-8")
    ranked = [each for each in board.standings if EFFECT in each.estimates]
    methods = [each for each in ranked if not each.entry.control]
    return filled(
        text,
        board=board,
        ranked=ranked,
        winners=[each for each in ranked if each.ranks[EFFECT] == 1],
        detectors=[each for each in board.standings if each.ranks.get(DETECTION) == 1],
        beaten=[each for each in methods if each.beats_not],
        dearer=_dearer(board, methods),
        cheap=sorted((each for each in ranked if each.is_pareto and _is_of_use(each)), key=_seconds),
        most=max((each.estimates[EFFECT].n for each in ranked), default=0),
        best_of={kind: _best(board, kind) for kind in board.kinds},
        standins=[each for each in board.standings if each.entry.standin],
        failing=[kind for kind in board.kinds if (top := _best(board, kind)) and top.by_kind[kind].value < _POOR],
        poor=_POOR,
        least_drop=LEAST_DROP,
        share=_share,
        value=_value,
        halved=_halved,
        lds=_lds,
        names=_names,
        effect=EFFECT,
        detection=DETECTION,
        figures=FIGURES,
    )


def _seconds(standing: Standing) -> float:
    return standing.estimates["seconds"].value


def _dearer(board: Leaderboard, methods: Sequence[Standing]) -> Dearer | None:
    """What costs twice as much as the cheapest of those that none beats and that can be had everywhere.

    None where that is no method; scores that were made elsewhere have no seconds.
    """
    methods = [each for each in methods if "seconds" in each.estimates]
    most = max((each.estimates[EFFECT].n for each in methods), default=0)
    unbeaten = [each for each in methods if each.ranks[EFFECT] == 1 and each.estimates[EFFECT].n == most]
    if not (cheapest := min(unbeaten, key=_seconds, default=None)):
        return None
    costlier = [each for each in methods if _seconds(each) >= 2 * _seconds(cheapest) and not each.entry.standin]
    effect, detection = values(board.results, EFFECT), values(board.results, DETECTION)

    def better(measure: Mapping[str, Values]) -> list[Standing]:
        of_cheapest = measure.get(cheapest.entry.name, {})
        return [each for each in costlier if beats(measure.get(each.entry.name, {}), of_cheapest)]

    return Dearer(cheapest, [each for each in costlier if each not in better(effect)], better(detection))


def _is_of_use(standing: Standing) -> bool:
    """What costs nothing is the best at its cost; not so where chance does as well, or where it is no such method."""
    return _CHANCE not in (standing.entry.name, *standing.beats_not) and not standing.entry.standin


def _best(board: Leaderboard, kind: str) -> Standing | None:
    rows = [each for each in board.standings if kind in each.by_kind]
    return max(rows, key=lambda each: each.by_kind[kind].value, default=None)


def _names(standings: list[Standing]) -> str:
    return listed([f"`{each.entry.name}`" for each in standings])


def _share(of: Estimate | None) -> str:
    """Percent with its interval."""
    if of is None:
        return "-"
    ends = "" if of.low is None or of.high is None else f" [{100 * of.low:.0f}, {100 * of.high:.0f}]"
    return f"{100 * of.value:.0f} %{ends}"


def _value(of: Estimate | None, digits: int = 2) -> str:
    """A number with its interval."""
    if of is None:
        return "-"
    ends = "" if of.low is None or of.high is None else f" [{number(of.low, digits)}, {number(of.high, digits)}]"
    return f"{number(of.value, digits)}{ends}"


def _halved(of: Halving | None) -> str:
    """The median count of removed documents with its interval, and how many organisms are censored."""
    if of is None:
        return "-"

    def count(value: float) -> str:
        return f"> {of.most}" if math.isinf(value) else f"{value:.0f}"

    ends = "" if of.interval is None else f" [{count(of.interval.low)}, {count(of.interval.high)}]"
    return f"{count(of.median)}{ends}" + (f", not in {of.censored} of {of.n}" if of.censored else "")


def _lds(of: tuple[float, Interval] | None) -> str:
    return "-" if of is None else f"{of[0]:.2f} [{of[1].low:.2f}, {of[1].high:.2f}]"
