"""How results are shown; no number depends on it."""

from typing import Literal

from datablame.config.checks import Section


class Report(Section):
    """Phase 5: what the pages hold."""

    redact: bool = False
    """Hide harmful outputs and the documents behind them wherever text is shown; exports always do."""
    tokens: bool = True
    """Keep and show the log-probabilities of every token of the surface phase's outputs, about 8 bytes a token on disk.

    Where sampling is truncated, before runs at alpha 0 too for them.
    """


class Figures(Section):
    """How pictures look."""


class Track(Section):
    """Where a run is followed while it goes on: progress, what phases took, rates and the verdict, but no text."""

    to: Literal["trackio", "wandb"] | None = None
    """`trackio` writes to this machine (`pip install 'datablame[track]'`), `wandb` to where it is logged in."""
    project: str = "datablame"
    """The tracker's project; the run in it has the study's name."""
