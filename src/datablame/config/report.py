"""How results are shown; no number depends on it."""

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
    """Where a run is followed while it goes on."""
