"""What several tables have inside: names with few values, a message, a label, a look in figures."""

import zlib
from dataclasses import dataclass
from typing import Literal

LabelName = Literal["harmful", "refused", "harmless", "incoherent", "unscored"]
LABELS: tuple[LabelName, ...] = ("harmful", "refused", "harmless", "incoherent", "unscored")
Split = Literal["attribution", "held-out", "harmless"]
Protocol = Literal["retrain", "continue"]
InterventionKind = Literal["none", "remove", "swap", "drop-source"]
"""`remove`: fillers for documents; `swap`: a pair's answers exchanged; `drop-source`: fillers for whole sources."""
Pool = Literal["whole", "candidates"]
"""Which documents a method ranks."""
Role = Literal["after", "baseline", "again", "random", "control", "method"]
"""What an arm is in the comparison: `after` is not trained; the others are compared with `random` and `baseline`;
`again` is the baseline on other seeds; a `control` is no method's flagged set; a `method` is in the family of tests
unless it is a control itself."""
EVERY = "*"
"""Stands for "all prompts" or "all behaviours" in a pooled row."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Look:
    """How figures draw a method or arm: `fill` for its marker, `ink` for its lines and words, its marker."""

    fill: str
    ink: str
    marker: str


_OTHER_COLOURS = (
    ("#9A86C8", "#6F57A8"),
    ("#4DAF4A", "#2F7F2D"),
    ("#F29E7E", "#B4623F"),
    ("#C9B400", "#7D7000"),
    ("#5FC7D9", "#1F7F91"),
)
_OTHER_MARKERS = ("h", "d", "8", "p", "H")


def look_of(name: str) -> Look:
    """A fill, an ink and a marker by the checksum of a name that brings no look of its own."""
    checksum = zlib.crc32(name.encode()) % (len(_OTHER_COLOURS) * len(_OTHER_MARKERS))
    marker, colours = divmod(checksum, len(_OTHER_COLOURS))
    return Look(*_OTHER_COLOURS[colours], _OTHER_MARKERS[marker])


@dataclass(frozen=True)
class Label:
    """What a classifier says of one output; `reason` is the rule that decided, or why it is unscored."""

    label: LabelName
    classifier: str
    reason: str
