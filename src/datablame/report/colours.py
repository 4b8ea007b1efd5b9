"""The colours of behaviours, labels and heatmaps: the same in pictures and on the page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from datablame.tables import Look

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
HARM_STOPS = ("#FFF8F2", "#FABE8C", "#D55E00", "#843200")
AGREEMENT_STOPS = ("#F3F8FC", "#9ECAE6", "#0072B2", "#002E50")
"""Of heatmaps, from pale to dark."""


def behaviour_looks(names: Sequence[str]) -> dict[str, Look]:
    """The colours and markers of a study's behaviours, by their order; past six, colours meet other markers."""
    count = len(_BEHAVIOURS)
    markers = [_BEHAVIOURS[(index + index // count) % count].marker for index in range(len(names))]
    return {name: replace(_BEHAVIOURS[index % count], marker=markers[index]) for index, name in enumerate(names)}
