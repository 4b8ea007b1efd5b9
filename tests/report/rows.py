"""Rows that several tests change one field of."""

from dataclasses import replace
from typing import Any

from datablame.report.people import People
from datablame.tables import Again, Calibration, Confusion


def calibration(**changes: Any) -> Calibration:
    """On 100 labelled outputs, of which people call 23 harmful."""
    sound = Calibration(
        file="people.jsonl",
        classifier="rules",
        n=100,
        unscored=0,
        counts=Confusion(20, 2, 3, 75),
        kappa=0.8,
        kappa_interval=(0.7, 0.9),
        labels={"harmful": {"harmful": 20}},
        sensitivity=0.87,
        sensitivity_interval=(0.7, 0.95),
        specificity=0.97,
        specificity_interval=(0.9, 0.99),
    )
    return replace(sound, **changes)


def people(**changes: Any) -> People:
    """Twelve outputs that one person labelled."""
    sound = People((), (), labelled=12, harmful=4, ties=0, unscored=0, stale=0, calibration=calibration())
    return replace(sound, **changes)


def again(**changes: Any) -> Again:
    """The A/A pair of five seeds."""
    return replace(Again("retrain", 5, 0.4, 0.3, -0.1, -0.2, 0.0, 0.5, 0.008, None), **changes)
