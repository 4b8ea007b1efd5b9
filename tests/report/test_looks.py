"""Series can be told apart in every figure, in grey too."""

from itertools import pairwise

from datablame.report.colours import LABEL_FILLS, behaviour_looks
from datablame.report.figures.style import AGREEMENT, HARM


def lightness(colour: str) -> float:
    red, green, blue = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_behaviours_have_looks_of_their_own_by_their_order() -> None:
    names = [f"behaviour-{number}" for number in range(15)]
    looks = behaviour_looks(names)
    assert len({(look.fill, look.marker) for look in looks.values()}) == 15
    assert len({look.marker for look in list(looks.values())[:6]}) == 6
    assert behaviour_looks(names[:3]) == {name: looks[name] for name in names[:3]}


def test_stacked_labels_differ_in_lightness_or_hatch() -> None:
    fills = list(LABEL_FILLS.values())
    for (above, hatch), (below, other) in pairwise(fills):
        assert abs(lightness(above) - lightness(below)) > 25 or hatch != other


def test_heatmaps_darken_from_0_on_and_what_is_missing_is_grey() -> None:
    for colours in (HARM, AGREEMENT):
        shades = [sum(colours(share / 10)[:3]) for share in range(11)]
        assert shades == sorted(shades, reverse=True)
        red, green, blue, _ = colours(-1.0)
        assert red == green == blue
