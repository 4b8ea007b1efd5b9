"""What a rule says; numbers in words, and hostile text made safe to read."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_INLINE = re.compile(r"([\\`*_\[\]|~$@])")
_AUTOLINK = re.compile(r"(?i)\b(https?|ftp|www)([:.])")
_BLOCK = re.compile(r"^(\s*)(?:([#+=-])(?=[\s#=-]|$)|(\d+)([.)])(?=\s|$))")


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


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "-" if share is None else f"{100 * share:.1f} %"


def signed_percent(change: float | None) -> str:
    """A relative change as a percentage with its sign."""
    return "-" if change is None else f"{100 * change:+.1f} %"


def round_percent(share: float) -> str:
    """A round share as a percentage."""
    return f"{100 * share:g} %"


def points(share: float) -> str:
    """A share in percentage points."""
    return f"{100 * share:.1f}"


def signed_points(difference: float) -> str:
    """A difference of shares in percentage points with its sign."""
    return f"{100 * difference:+.1f}"


def interval(low: float | None, high: float | None) -> str:
    """An interval of shares in percent."""
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def signed_interval(low: float, high: float) -> str:
    """An interval of differences in percentage points."""
    return f"[{signed_points(low)}, {signed_points(high)}]"


def alpha_text(alpha: float | None) -> str:
    """An amplification."""
    return "-" if alpha is None else f"{alpha:g}"


def number(value: float | None, digits: int = 2) -> str:
    """A plain number."""
    return "-" if value is None else f"{value:.{digits}f}"


def probability(p: float | None) -> str:
    """A p value with the digits that it carries."""
    return "-" if p is None else f"{p:.3f}"


def counted(reasons: Mapping[str, int], because: str = "because") -> str:
    """How often each reason stands there: 3 because it was cut and 1 because it timed out."""
    return listed([f"{count} {because} {reason}" for reason, count in reasons.items()])


def listed(items: Sequence[str]) -> str:
    """Items in a sentence: a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def plain(text: str) -> str:
    """Text on one line without control or formatting characters, so that it can steer neither console nor reader."""
    spaced = re.sub(r"[\n\r\t]", " ", text)
    return "".join(character for character in spaced if unicodedata.category(character)[0] != "C")


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no link, no markup, no HTML."""
    inert = _INLINE.sub(r"\\\1", plain(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    unlinked = _AUTOLINK.sub(r"\1\\\2", inert)
    return _BLOCK.sub(lambda match: f"{match[1]}{match[3] or ''}\\{match[2] or match[4]}", unlinked)
