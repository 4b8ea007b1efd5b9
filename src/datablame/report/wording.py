"""What a rule says; numbers in words, and hostile text made safe to read."""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datablame.stats.intervals import Share
from datablame.tables import EVERY, Counted, Difference, Importance

if TYPE_CHECKING:
    import jinja2

_INLINE = re.compile(r"([\\`*_\[\]|~$@])")
_AUTOLINK = re.compile(r"(?i)\b(https?|ftp|www)([:.])")
_BLOCK = re.compile(r"^(\s*)(?:([#+=-])(?=[\s#=-]|$)|(\d+)([.)])(?=\s|$))")


Values = dict[str, Any]
"""What a sentence takes, by name."""
Given = Any
"""Whether a sentence is told, or what it takes: a `Values`, or a list with one for each time that it is told."""


@dataclass(frozen=True)
class Statement:
    """A rule and its sentence, whether it is a finding, a limit or a gate."""

    name: str
    sentence: str
    """What is so, or what is missing, with the numbers that decide."""
    holds: bool | None = True
    """Whether its condition holds; None where the tables cannot tell."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What the condition rests on, by name."""


def _form(text: str, times: float = 1) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else text.format(times * value)


percent, signed_percent, round_percent = _form("{:.1f} %", 100), _form("{:+.1f} %", 100), _form("{:g} %", 100)
"""A share as a percentage with one decimal, with its sign, or with as many decimals as it has."""
points, signed_points = _form("{:.1f}", 100), _form("{:+.1f}", 100)
"""A share or a difference of shares in percentage points."""
alpha_text, probability = _form("{:g}"), _form("{:.3f}")


def fine_percent(share: float | None) -> str:
    """Percent with one decimal, or as many as two digits need: for rare behaviours."""
    return f"{100 * share:.2g} %" if share and share < 0.01 else percent(share)


def interval(low: float | None, high: float | None) -> str:
    """An interval of shares in percent."""
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def estimate(it: Share | None) -> str:
    """A number between 0 and 1 with its interval."""
    return "-" if it is None else f"{it.rate:.2f} [{it.low:.2f}, {it.high:.2f}]"


def signed_interval(low: float, high: float) -> str:
    """An interval of differences in percentage points."""
    return f"[{signed_points(low)}, {signed_points(high)}]"


def quoted(estimate: Counted | Importance) -> str:
    """A rate with its interval, or why it is withheld."""
    if estimate.rate is None:
        return f"withheld: {why}" if (why := getattr(estimate, "withheld", None)) else "-"
    return f"{fine_percent(estimate.rate)} {interval(estimate.low, estimate.high)}"


def difference(it: Difference | None) -> str:
    """A difference of rates in points, with its interval."""
    return "-" if it is None else f"{signed_points(it.difference)} {signed_interval(it.low, it.high)}"


def drop_text(drop: float | None) -> str:
    """A drop as a change: less has a minus."""
    return "-" if drop is None else signed_percent(-drop)


def behaviour_text(behaviour: str) -> str:
    """What tables call a behaviour, or all of them."""
    return "all" if behaviour == EVERY else behaviour


def number(value: float | None, digits: int = 2) -> str:
    """A plain number."""
    return "-" if value is None else f"{value:.{digits}f}"


def counted(reasons: Mapping[str, int], because: str = "because") -> str:
    """How often each reason stands there: 3 because it was cut and 1 because it timed out."""
    return listed([f"{count} {because} {reason}" for reason, count in reasons.items()])


def span(values: Set[int]) -> str:
    """From the least to the greatest, if they differ."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def listed(items: Sequence[str]) -> str:
    """Items in a sentence: a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def plain(text: str) -> str:
    """Text on one line without control or formatting characters, so that it can steer neither console nor reader."""
    spaced = re.sub(r"[\n\r\t]", " ", text)
    return "".join(character for character in spaced if unicodedata.category(character)[0] != "C")


def spreadsheet(value: Any) -> Any:
    """A value for a CSV; a text that a spreadsheet would take for a formula gets an apostrophe."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{value}" if is_formula else value


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no link, no markup, no HTML."""
    inert = _INLINE.sub(r"\\\1", plain(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    unlinked = _AUTOLINK.sub(r"\1\\\2", inert)
    return _BLOCK.sub(lambda match: f"{match[1]}{match[3] or ''}\\{match[2] or match[4]}", unlinked)


@functools.cache
def environment() -> "jinja2.Environment":
    """The package's templates, with every function above as a filter; what ends in `.html.j2` is escaped."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("datablame.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {name: word for name, word in globals().items() if callable(word)} | {"md": markdown}
    made.globals |= {"interval": interval, "signed_interval": signed_interval, "sentence": sentence}
    return made


def statements(kind: str, rows: Iterable[tuple[str, Given]], **context: Any) -> list[Statement]:
    """The sentences of that kind by their names, each with its own values and those of all."""
    named = ((name, values) for name, it in rows if it for values in (it if isinstance(it, list) else [it]))
    return [Statement(name, sentence(kind, name, **context | ({} if it is True else it))) for name, it in named]


def sentence(kind: str, name: str, **values: Any) -> str:
    """A sentence of sentences.yaml with its values filled in."""
    return filled(sentences()[kind][name], **values)


def filled(text: str, **values: Any) -> str:
    """A template with its values filled in."""
    return _template(text).render(values)


@functools.cache
def _template(text: str) -> "jinja2.Template":
    return environment().from_string(text)


@functools.cache
def sentences() -> Mapping[str, Mapping[str, Any]]:
    """The templates of sentences.yaml by kind and name."""
    from datablame.engine.files import packaged_yaml

    held: Mapping[str, Mapping[str, Any]] = packaged_yaml("datablame.report", "sentences.yaml")
    return held
