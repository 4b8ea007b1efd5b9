"""How results are shown; no number depends on it."""

from typing import Annotated, ClassVar

from pydantic import Field

from datablame.config.checks import Section


class Report(Section):
    """Phase 5: what the pages hold."""

    redact: bool = False
    """Hide harmful outputs and the documents behind them wherever text is shown; exports always do."""
    tokens: bool = True
    """Keep the log-probabilities of every token of the surface phase's outputs, six bytes a token, and show them."""


class Figures(Section):
    """How pictures look: PNG of 300 dots an inch, SVG and PDF alike; heights follow from what is shown."""

    LEAST_EMS: ClassVar[int] = 48
    """What a page is wide at least, in sizes of its type."""

    width: Annotated[float, Field(ge=2, le=30)] = 7.0
    """Inches that a picture is wide, 48 times `size` at least: a paper's text width, so that it is not scaled there."""
    size: Annotated[float, Field(ge=4, le=20)] = 8.0
    """Points of the type of names; numbers and captions are a little smaller, headings larger."""
    font: str = "DejaVu Sans"
    """The family of the type, installed where figures are drawn; letters that it lacks come from DejaVu Sans."""
    caption: bool = True
    """Write title and caption into the picture; where a paper has its own, they stand in the file's metadata only."""


class Track(Section):
    """Where a run is followed while it goes on."""
