"""How every figure looks: colours, markers and type, text that fits, and PNG bytes that repeat."""

import functools
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.report.wording import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
INK, GREY, FAINT = "#1A1A1A", "#5C5C5C", "#E3E3E3"
POINTS = 72
_DPI = 160
_FAMILY = "DejaVu Sans"
_MARGIN, _HEADER, _HEADING = 0.28, 0.55, 0.38
"""Inches: around the page, for its title, for a panel's heading."""
_TITLE_SIZE, _HEADING_SIZE, _CAPTION_SIZE = 15.0, 11.5, 9.0
_CAPTION_LEADING, _LINE = 1.45, 1.2
_PERCENT = re.compile(r"(\d) %")
_SETTINGS: Mapping[Any, Any] = {
    "font.family": _FAMILY,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelsize": 9.5,
    "axes.labelcolor": GREY,
    "axes.edgecolor": "#9A9A9A",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "ytick.major.pad": 5,
    "hatch.linewidth": 0.5,
}


class Box(NamedTuple):
    """Inches from the upper left corner of the page below its title."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Look:
    """What a series is known by: `fill` for its marker, `ink` for its lines and words, a marker of its own."""

    fill: str
    ink: str
    marker: str


_LOOKS: Mapping[str, Look] = {
    "gradient": Look("#0072B2", "#0072B2", "o"),
    "gradient-dot": Look("#56B4E9", "#2B8AC0", "D"),
    "gradient-diff": Look("#003A66", "#003A66", "p"),
    "activation": Look("#D55E00", "#C25500", "^"),
    "activation-centred": Look("#E69F00", "#B87F00", "v"),
    "activation-diff": Look("#9E0B2B", "#9E0B2B", "8"),
    "llm-judge": Look("#CC79A7", "#B05A8B", "P"),
    "ensemble": Look("#6A3D9A", "#6A3D9A", "h"),
    "bm25": Look("#009E73", "#00855F", "s"),
    "embedding": Look("#66C2A5", "#3E8F75", "H"),
    "random": Look("#8C8C8C", "#6B6B6B", "X"),
    "loss": Look("#B08D6E", "#8C6B4F", "<"),
    "gradient-norm": Look("#6E5240", "#5A4334", ">"),
    "baseline": Look("#000000", "#000000", "d"),
    "a-a": Look("#C9C9C9", "#3F3F3F", "d"),
    "bottom": Look("#CFC6B8", "#7A6E5D", "8"),
    "untrained": Look("#FFFFFF", "#4A4A4A", "p"),
    "oracle": Look("#F0E442", "#857A00", "*"),
}
"""Okabe and Ito's colours for the methods, dark ones beside them; greys, browns and black for what is no method."""

_OTHER_INKS = (
    ("#9A86C8", "#6F57A8"),
    ("#4DAF4A", "#2F7F2D"),
    ("#F29E7E", "#B4623F"),
    ("#C9B400", "#7D7000"),
    ("#5FC7D9", "#1F7F91"),
)
_OTHER_MARKERS = ("h", "d", "8", "p", "H")
"""For methods of others, whose names are not known beforehand: a fill, an ink and a marker by the name's checksum."""

_BEHAVIOURS = (
    Look("#332288", "#332288", "o"),
    Look("#44AA99", "#2C8577", "s"),
    Look("#AA4499", "#AA4499", "^"),
    Look("#999933", "#77771F", "D"),
    Look("#661100", "#661100", "v"),
    Look("#88CCEE", "#3D8FB8", "P"),
)
"""Tol's muted colours: behaviours are not methods, so they share no colour with them."""

LABEL_FILLS: Mapping[str, tuple[str, str]] = {
    "harmful": ("#C44E00", ""),
    "harmless": ("#CDE6F5", ""),
    "refused": ("#6AAED6", ""),
    "incoherent": ("#D6D6D6", "////"),
    "unscored": ("#FFFFFF", "...."),
}
"""Fill and hatch by label, in the order in which they are stacked; neighbours differ in lightness."""


def look(name: str) -> Look:
    """The colour and marker of a method or arm, the same in every figure."""
    if name in _LOOKS:
        return _LOOKS[name]
    marker, colours = divmod(zlib.crc32(name.encode()) % (len(_OTHER_INKS) * len(_OTHER_MARKERS)), len(_OTHER_INKS))
    return Look(*_OTHER_INKS[colours], _OTHER_MARKERS[marker])


def behaviour_looks(names: Sequence[str]) -> dict[str, Look]:
    """The colours and markers of a study's behaviours, by their order."""
    return {name: _BEHAVIOURS[place % len(_BEHAVIOURS)] for place, name in enumerate(names)}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our type and lines, whatever matplotlibrc says; a dollar sign is a dollar sign."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def page(width: float, height: float, title: str, caption: str) -> "Figure":
    """A figure of that many inches within its margins, title above and caption below, both on top of the height."""
    from matplotlib.figure import Figure

    lines = wrapped(caption, width, _CAPTION_SIZE)
    below = len(lines) * _CAPTION_SIZE * _CAPTION_LEADING / POINTS + 0.2
    wide, high = width + 2 * _MARGIN, _MARGIN + _HEADER + height + below + _MARGIN
    figure = Figure(figsize=(wide, high), dpi=_DPI, facecolor="white")
    heading = wrapped(title, width, _TITLE_SIZE, bold=True, most=1)[0]
    figure.text(_MARGIN / wide, 1 - _MARGIN / high, heading, size=_TITLE_SIZE, weight="bold", va="top")
    figure.text(
        _MARGIN / wide,
        _MARGIN / high,
        "\n".join(lines),
        size=_CAPTION_SIZE,
        color=GREY,
        va="bottom",
        linespacing=_CAPTION_LEADING / _LINE,
    )
    return figure


def panel(
    figure: "Figure", box: Box, heading: str, *, left: float = 0, right: float = 0, above: float = 0, below: float = 0
) -> "Axes":
    """Axes in a box under its heading, with so many inches left free on each side for labels."""
    wide, high = figure.get_size_inches()
    x, y = _MARGIN + box.left, _MARGIN + _HEADER + box.top
    words = wrapped(heading, box.width, _HEADING_SIZE, bold=True, most=1)[0]
    figure.text(x / wide, 1 - y / high, words, size=_HEADING_SIZE, weight="bold", va="top")
    width, height = box.width - left - right, box.height - _HEADING - above - below
    bottom = high - y - box.height + below
    return figure.add_axes(((x + left) / wide, bottom / high, width / wide, height / high))


def png(figure: "Figure") -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def nothing(axes: "Axes", why: str) -> None:
    """Say in an otherwise empty panel why it is empty."""
    axes.set_axis_off()
    text = "\n".join(wrapped(f"nothing to show: {why}", 2.6, 10))
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, style="italic")


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Inches that one line of text takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family=_FAMILY, size=size, weight="bold" if bold else "normal")
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / POINTS


def wrapped(text: str, width: float, size: float, *, bold: bool = False, most: int | None = None) -> list[str]:
    """Lines of at most that many inches, broken at spaces, inside a word only where it alone is longer."""
    lines: list[str] = []
    current = ""
    for word in _words(text):
        longer = f"{current} {word}" if current else word
        if text_width(longer, size, bold=bold) <= width:
            current = longer
            continue
        if current:
            lines.append(current)
        while text_width(word, size, bold=bold) > width and len(word) > 1:
            cut = max(1, _fitting(word, width, size, bold))
            lines.append(word[:cut])
            word = word[cut:]
        current = word
    lines += [current] if current else []
    if most is not None and len(lines) > most:
        last = lines[most - 1]
        while last and text_width(last + "…", size, bold=bold) > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "…"]
    return lines or [""]


def _words(text: str) -> list[str]:
    """What may stand on a line of its own; a number keeps its percent sign."""
    return _PERCENT.sub("\\1\N{NO-BREAK SPACE}%", " ".join(plain(text).split())).split(" ")


def shortened(name: str, width: float, size: float, *, bold: bool = False) -> str:
    """A name on one line, its middle left out where it is longer: names often differ at their end."""
    name = " ".join(plain(name).split())
    kept, text = len(name), name
    while kept > 2 and text_width(text, size, bold=bold) > width:
        kept -= 1
        text = f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
    return text


def _fitting(word: str, width: float, size: float, bold: bool) -> int:
    """How many letters of a word fit."""
    low, high = 0, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(word[:middle], size, bold=bold) <= width else (low, middle - 1)
    return low


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels at least `gap` apart within [low, high], nearest in squares to where they are wanted."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    blocks: list[tuple[float, int]] = []
    for rank, place in enumerate(order):
        blocks.append((wanted[place] - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    levels = [level for level, count in blocks for _ in range(count)]
    top = max(low, high - (len(wanted) - 1) * gap)
    found = [0.0] * len(wanted)
    for rank, place in enumerate(order):
        found[place] = min(max(levels[rank], low), top) + rank * gap
    return found


def fill_of(share: float) -> tuple[str, str]:
    """The fill of a heatmap's cell for a harmful share of 0 to 1, pale to dark, and the ink to write on it."""
    return _between(((255, 248, 242), (250, 190, 140), (213, 94, 0), (132, 50, 0)), share)


def blue_of(share: float) -> tuple[str, str]:
    """The same for a share that is no harm."""
    return _between(((243, 248, 252), (158, 202, 230), (0, 114, 178), (0, 46, 80)), share)


def _between(stops: Sequence[tuple[int, int, int]], share: float) -> tuple[str, str]:
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    index = min(int(at), len(stops) - 2)
    mixed = [round(a + (b - a) * (at - index)) for a, b in zip(stops[index], stops[index + 1], strict=True)]
    light = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]
    return "#{:02X}{:02X}{:02X}".format(*mixed), INK if light > 140 else "white"
