"""Methods can be told apart in every figure."""

from itertools import combinations

from datablame.report.style import look
from datablame.study.checks import METHODS


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))


def test_every_method_has_a_colour_and_marker_of_its_own() -> None:
    looks = {name: look(name) for name in METHODS}
    assert len({each.marker for each in looks.values()}) >= len(METHODS) - 1
    for a, b in combinations(METHODS, 2):
        apart = sum((x - y) ** 2 for x, y in zip(rgb(looks[a].fill), rgb(looks[b].fill), strict=True)) ** 0.5
        assert apart > 40, (a, b)


def test_methods_of_others_have_looks_of_their_own_that_stay() -> None:
    names = [f"scores-{number}" for number in range(40)]
    looks = {name: look(name) for name in names}
    assert looks == {name: look(name) for name in names}
    assert len(set(looks.values())) >= 15
    assert not set(looks.values()) & {look(name) for name in METHODS}
