"""How results are shown; no number depends on it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from datablame.config.checks import Section


class Report(Section):
    """Phase 5: what the pages hold."""

    redact: bool = False
    """Hide harmful outputs and the documents behind them wherever text is shown; exports do it unless told not to."""
    tokens: bool = True
    """Keep and show the log-probabilities of every token of the surface phase's outputs, about 8 bytes a token on disk.

    Where sampling is truncated, before runs at alpha 0 too for them.
    """


class Figures(Section):
    """How pictures look: PNG of 300 dots an inch, SVG and PDF alike; heights follow from what is shown."""

    LEAST_EMS: ClassVar[int] = 48
    """What a page is wide at least, in sizes of its type."""

    width: Annotated[float, Field(ge=2, le=30)] = 7.0
    """Inches that a picture is wide, 48 times `size` at least: a paper's text width, so that it is not scaled there;
    `final_results` is twice as wide, for slides."""
    size: Annotated[float, Field(ge=4, le=20)] = 8.0
    """Points of the type of names; numbers and captions are a little smaller, headings larger."""
    font: str = "DejaVu Sans"
    """The family of the type, installed where figures are drawn; letters that it lacks come from DejaVu Sans."""
    caption: bool = True
    """Write title and caption into the picture; where a paper has its own, they stand in the file's metadata only."""


class Track(Section):
    """Where a run is followed while it goes on: progress, what phases took, rates and the verdict, but no text."""

    to: Literal["trackio", "wandb"] | None = None
    """`trackio` writes to this machine (`pip install 'datablame[track]'`), `wandb` to where it is logged in."""
    project: str = "datablame"
    """The tracker's project; the run in it has the study's name."""
