"""Type: what the study asks for, how much room words take, and lines and names that fit.

All lengths are in ems, the size of the study's type, so that a page looks the same at any size.
"""

import difflib
import functools
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, font_scalings, fontManager
from matplotlib.textpath import TextToPath

from datablame.config.report import Figures
from datablame.errors import RequestError
from datablame.report.wording import plain, sentence

SETTINGS = Path(__file__).with_name("page.mplstyle")
Size = Literal["small", "medium", "large", "x-large"]
POINTS = 72
LEADING = 1.3
"""From line to line, as a share of the type's size."""
MARGIN = 0.8
"""Around the page."""
_FALLBACK = "DejaVu Sans"
"""Comes with matplotlib, and has the letters that other fonts lack."""
_LONGEST = 3000
"""Characters of a text; in the middle of a longer one some are left out before it is measured."""
_SPACES = {
    **{"xtick.major.size": 0.35, "ytick.major.size": 0.35, "xtick.major.pad": 0.35, "ytick.major.pad": 0.35},
    **{"axes.labelpad": 0.5, "axes.titlepad": 0.7},
}
"""Of axes and ticks, in ems; matplotlib has them in points."""
_MISSING = "Glyph .* missing from font"
_PERCENT = re.compile(r"(\d) %")


def check_font(font: str) -> None:
    """Refuse a font that is not installed.

    Raises:
        RequestError: with the families of the nearest names.
    """
    families = {entry.name for entry in fontManager.ttflist}
    if font not in families:
        known = difflib.get_close_matches(font, sorted(families)) or [_FALLBACK]
        raise RequestError(sentence("figures", "unknown font", font=font, known=known, cache=mpl.get_cachedir()))


@contextmanager
def typeset(settings: Figures) -> Iterator[None]:
    """What is measured and drawn meanwhile has the study's type and width and our lines, whatever matplotlibrc says."""
    check_font(settings.font)
    family = list(dict.fromkeys([settings.font, _FALLBACK]))
    page: Any = {"font.family": family, "font.size": settings.size, "figure.figsize": (settings.width, settings.width)}
    page |= {name: ems * settings.size for name, ems in _SPACES.items()}
    with mpl.rc_context(page, SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_MISSING)
        yield


def em(ems: float = 1) -> float:
    """Points that so many ems are."""
    return ems * float(mpl.rcParams["font.size"])


def wide() -> float:
    """Ems of the page between its margins."""
    return float(mpl.rcParams["figure.figsize"][0]) * POINTS / em() - 2 * MARGIN


def lines_height(lines: Sequence[str], size: Size) -> float:
    """Ems that lines of a size take."""
    return len(lines) * font_scalings[size] * LEADING


def text_width(text: str, size: Size = "medium", weight: str = "normal") -> float:
    """Ems that one line of text takes."""
    return font_scalings[size] * _measured(text, weight, tuple(mpl.rcParams["font.family"]))


@functools.lru_cache(maxsize=8192)
def _measured(text: str, weight: str, family: tuple[str, ...]) -> float:
    font = FontProperties(family=list(family), size=100, weight=weight)
    return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]) / 100


def wrapped(text: str, ems: float, size: Size = "medium", weight: str = "normal", most: int | None = None) -> list[str]:
    """Lines of at most that width, broken at spaces, inside a word only where it alone is longer.

    A number keeps its percent sign. Of more than `most` lines the last one has what follows, its middle left out.
    """
    lines = [""]
    for word in _PERCENT.sub("\\1\N{NO-BREAK SPACE}%", _cut(text)).split(" "):
        longer = f"{lines[-1]} {word}".strip(" ")
        if text_width(longer, size, weight) <= ems:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for part in [word] if text_width(word, size, weight) <= ems else word:
            if lines[-1] and text_width(lines[-1] + part, size, weight) > ems:
                lines.append("")
            lines[-1] += part
    if most is not None and len(lines) > most:
        lines[most - 1 :] = [shortened(" ".join(lines[most - 1 :]), ems, size, weight)]
    return lines


def shortened(name: str, ems: float, size: Size = "medium", weight: str = "normal") -> str:
    """A name on one line, its middle left out where it is longer: names often differ at their end."""
    name = _cut(name)
    if text_width(name, size, weight) <= ems:
        return name
    length = len(name)

    def kept(letters: int) -> str:
        return f"{name[: (letters + 1) // 2].rstrip()}…{name[length - letters // 2 :].lstrip()}"

    fitting = bisect_right(range(length + 1), ems, key=lambda letters: text_width(kept(letters), size, weight))
    return kept(max(0, fitting - 1))


def _cut(text: str) -> str:
    """Text on one line, without what steers a reader, and of a length that can be measured."""
    half = _LONGEST // 2
    words = " ".join(plain(text if len(text) <= 2 * _LONGEST else text[:_LONGEST] + text[-_LONGEST:]).split())
    return words if len(words) <= _LONGEST else f"{words[:half]}…{words[-half:]}"
