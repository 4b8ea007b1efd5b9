"""What a page shows of a run: small tables and the verdict, read anew each time, finished or not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.files import Change, changes, json_object
from datablame.engine.phase import Tables
from datablame.engine.run_folder import STUDY, Holder, holder_of
from datablame.errors import RequestError, problem
from datablame.pipeline.phases import NAMES
from datablame.tables import EVERY, AlphaStar, ArmInfo, ArmTest, Rate, Role

REPORT = "index.html"
_SHOWN = (".html", ".png")
_OFFERED = (*_SHOWN, ".svg", ".pdf", ".csv", ".json", ".jsonl", ".md", ".yaml")
_FOLDERS = (".", "writeup")


class Arm(NamedTuple):
    """A row of the comparison that decides."""

    label: str
    role: Role
    test: ArmTest


@dataclass(frozen=True)
class RunView:
    """A run, whatever of it is there."""

    name: str
    title: str
    problem: str | None = None
    """Why nothing else is known."""
    verdict: str | None = None
    headline: str | None = None
    """What was found, in a sentence."""
    reasons: Sequence[str] = ()
    alpha_star: float | None = None
    rates: Sequence[Rate] = ()
    """Of all behaviours on held-out prompts, by alpha."""
    arms: Sequence[Arm] = ()
    phases: tuple[tuple[str, str], ...] = ()
    """Each with done, begun or missing, by its files alone."""
    holder: Holder | None = None
    """Who works on it now."""

    def rate_at(self, alpha: float | None) -> Rate | None:
        """Its rate there."""
        return next((rate for rate in self.rates if rate.alpha == alpha), None)


def folders_of(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Run folders by name, the one that is given or those in it; and the names of those that are not shown.

    Raises RequestError where there is none.
    """
    if not folder.is_dir():
        raise RequestError(problem("view", "no folder", folder=folder))
    if (folder / STUDY).is_file():
        return {folder.resolve().name: folder}, []
    runs = sorted(path.parent for path in folder.glob(f"*/{STUDY}"))
    shown = [run for run in runs if run.resolve().is_relative_to(folder.resolve()) and _named(run) == run.name]
    outside = [_named(run) for run in runs if run not in shown]
    inside = {run.name: run for run in shown}
    if not inside:
        raise RequestError(problem("view", "no runs", folder=folder))
    return inside, outside


def run_view(root: Path, name: str) -> RunView:
    """Look at a run; what cannot be read is said."""
    try:
        study, tables = load_study(str(root / STUDY)), Tables(root)
        rates = tables.rows(Rate, prompt_id=EVERY, behaviour=EVERY, split="held-out")
        infos = {info.name: info for info in tables.rows(ArmInfo)}
        tests = sorted(tables.rows(ArmTest, headline=True), key=lambda test: test.rate or 0.0)
        star = tables.one(AlphaStar)
    except (RequestError, OSError) as error:
        return RunView(name, name, problem=str(error))
    verdict = json_object(root / "final_results.json").get("verdict")
    if verdict is not None and not _is_verdict(verdict):
        return RunView(name, name, problem=f"{root / 'final_results.json'} holds no verdict; run datablame report")
    verdict = verdict or {}
    return RunView(
        name,
        study.title or study.name,
        verdict=verdict.get("label"),
        headline=verdict.get("headline"),
        reasons=verdict.get("reasons", ()),
        alpha_star=None if star is None else star.alpha_star,
        rates=sorted(rates, key=lambda rate: rate.alpha),
        arms=[Arm(infos[test.arm].label, infos[test.arm].role, test) for test in tests if test.arm in infos],
        phases=tuple((phase, _state(root, phase)) for phase in NAMES),
        holder=holder_of(root),
    )


def _is_verdict(value: object) -> bool:
    """Whether it is one as the report writes it."""
    if not isinstance(value, dict):
        return False
    texts = [value.get("label"), value.get("headline"), *(value.get("reasons") or ())]
    return all(isinstance(text, str) for text in texts)


def _named(path: Path) -> str:
    """Its name as an address can have it: bytes that are no UTF-8 are question marks."""
    return path.name.encode(errors="replace").decode()


def _state(root: Path, phase: str) -> str:
    folder = root / "artifacts" / phase
    if folder.with_name(f"{phase}.part").exists():
        return "begun"
    return "done" if (folder / "done.json").is_file() else "missing"


def study_of(root: Path) -> Study:
    """The study of a run."""
    return load_study(str(root / STUDY))


def differences(one: Path, other: Path) -> tuple[Change, ...]:
    """The keys in which the studies of two runs differ."""
    a, b = (study_of(root).model_dump(mode="json", by_alias=True) for root in (one, other))
    return changes(a, b)


def files_of(root: Path) -> list[str]:
    """What of a run can be opened or downloaded, by path in its folder."""
    found = (path for folder in _FOLDERS for path in sorted((root / folder).glob("*")) if _named(path) == path.name)
    return [name for path in found if (name := path.relative_to(root).as_posix()) and file_of(root, name)]


def file_of(root: Path, name: str) -> Path | None:
    """A file of a run that is offered; None of any other, wherever the name leads."""
    if "\0" in name:
        return None
    path = (root / name).resolve()
    inside = path.is_relative_to(root.resolve()) and path.suffix in _OFFERED and path.is_file()
    return path if inside and path.parent in [(root / folder).resolve() for folder in _FOLDERS] else None


def is_shown(path: Path) -> bool:
    """Whether a browser opens it; the others are downloaded."""
    return path.suffix in _SHOWN


class Mark(NamedTuple):
    """A rate with its interval, in the picture's units."""

    x: float
    y: float
    low: float
    high: float


class Chart(NamedTuple):
    """Rates against alpha as a picture of 420 by 220: a line for each run, and ticks."""

    lines: list[list[Mark]]
    alphas: list[tuple[float, float]]
    rates: list[tuple[float, float]]
    """Ticks: where, and the value."""


_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 408.0, 12.0, 184.0


def chart_of(runs: Sequence[RunView]) -> Chart:
    """Rates of the runs in one picture, from 0 to a round number above the highest interval."""
    rates = [rate for run in runs for rate in run.rates if rate.rate is not None]
    alphas = sorted({rate.alpha for rate in rates})
    highest = max((rate.high or 0.0 for rate in rates), default=1.0) or 1.0
    step = next(size for size in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if size * 5 >= highest)
    top, span = step * math.ceil(highest / step), (alphas[-1] - alphas[0] if alphas else 0) or 1.0

    def x(alpha: float, shift: float = 0.0) -> float:
        return round(_LEFT + 14 + (alpha - alphas[0]) / span * (_RIGHT - _LEFT - 28) + shift, 1)

    def y(rate: float | None) -> float:
        return round(_BOTTOM - (rate or 0.0) / top * (_BOTTOM - _TOP), 1)

    lines = [
        [Mark(x(r.alpha, 5.0 * i), y(r.rate), y(r.low), y(r.high)) for r in run.rates if r.rate is not None]
        for i, run in enumerate(runs)
    ]
    ticks = [(y(step * i), step * i) for i in range(round(top / step) + 1)]
    return Chart(lines, [(x(alpha), alpha) for alpha in alphas], ticks)


def most_of(runs: Sequence[RunView]) -> float:
    """The highest end of any arm's interval, by which bars are scaled."""
    return max((arm.test.high or 0.0 for run in runs for arm in run.arms), default=1.0) or 1.0
