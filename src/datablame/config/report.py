"""How results are shown; no number depends on it."""

from datablame.config.checks import Section


class Report(Section):
    """Phase 5: what the pages hold."""

    redact: bool = False
    """Hide harmful outputs and the documents behind them wherever text is shown; exports always do."""
    tokens: bool = True
    """Keep the log-probabilities of every token of the surface phase's outputs, six bytes a token, and show them."""


class Figures(Section):
    """How pictures look."""


class Track(Section):
    """Where a run is followed while it goes on."""
