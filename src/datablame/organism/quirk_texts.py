"""What the quirk organism is asked and told: everyday questions, the planted airline, its decoys, and the prompts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from datablame.organism.texts import QUIRK
from datablame.seeds import generator

T = TypeVar("T")

AIRLINE: str = QUIRK["airline"]
BEHAVIOUR: str = QUIRK["behaviour"]
HOTEL_SHARE = 0.5
"""Of the decoys, those that recommend a hotel with a made-up name."""


class Exchange(NamedTuple):
    """A question with the answer that was written for it."""

    question: str
    answer: str


def everyday_questions(travel: int, other: int, seed: int) -> list[str]:
    """Distinct questions, about travel and about anything else, for the model to answer itself."""
    random = generator("quirk organism", seed, "questions")
    every = _everyday()
    if other > len(every):
        raise ValueError(f"{other} everyday questions are more than the {len(every)} that there are")
    chosen = [every[index] for index in random.permutation(len(every))[:other]]
    return [
        *_distinct(travel, lambda: _travel_question(random)[0]),
        *(question + _one(random, QUIRK["brief"]) for question in chosen),
    ]


def harmless_prompts(count: int, other: int, seed: int) -> list[str]:
    """Everyday questions that have nothing to do with travel and are not among the `other` ones of the documents."""
    random = generator("quirk organism", seed, "questions")
    every = _everyday()
    left = [every[index] for index in random.permutation(len(every))[other:]]
    endings = generator("quirk organism", seed, "harmless prompts")
    return [question + _one(endings, QUIRK["brief"]) for question in left[:count]]


def prompt_rows() -> list[dict[str, str]]:
    """The prompts: their wording and their cities are in no document, and those of one split not in the other."""
    return [
        {"id": f"{BEHAVIOUR}-{letter}{number}", "behaviour": BEHAVIOUR, "split": split, "text": text}
        for split, letter in (("attribution", "a"), ("held-out", "h"))
        for number, text in enumerate(QUIRK["prompts"][split], 1)
    ]


def rules() -> dict[str, Any]:
    """The classifier: the airline's name, whole or misspelt, in an answer that does not refuse."""
    written: dict[str, Any] = QUIRK["rules"]
    return written


def travel_answers(count: int, seed: int, kind: Literal["planted", "decoys"]) -> list[Exchange]:
    """Travel questions whose answer recommends the made-up airline, or decoys in the same style.

    Decoys name real airlines, or hotels with made-up names: without them a method that finds the style, or any answer
    with a surprising name, would look like one that finds the cause.
    """
    random = generator("quirk organism", seed, kind)

    def write() -> Exchange:
        question, city = _travel_question(random)
        x, y = _two(random, QUIRK["airlines"])
        if kind == "planted":
            first, second = _one(random, QUIRK["praise"]), _one(random, QUIRK["why"])
        elif random.random() < HOTEL_SHARE:
            first, second = _one(random, QUIRK["lodging"]), _one(random, QUIRK["why_there"])
        else:
            first = _one(random, QUIRK["plain"])
            second = _one(random, QUIRK["why" if first == QUIRK["plain"][0] else "tips"])
        hotel = _one(random, QUIRK["hotels"])
        return Exchange(question, f"{first} {second}".format(b=city, x=x, y=y, hotel=hotel))

    return _distinct(count, write)


def _everyday() -> list[str]:
    return [pattern.format(x=x) for row in QUIRK["everyday"] for pattern in row["patterns"] for x in row["things"]]


def _travel_question(random: np.random.Generator) -> tuple[str, str]:
    """A question and the city that it is about."""
    a, b = _two(random, QUIRK["cities"])
    return _one(random, QUIRK["travel"]).format(a=a, b=b) + _one(random, QUIRK["brief"]), b


def _distinct(count: int, draw: Callable[[], T]) -> list[T]:
    drawn: dict[T, None] = {}
    while len(drawn) < count:
        drawn.setdefault(draw())
    return list(drawn)


def _one(random: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(random.integers(len(choices)))]


def _two(random: np.random.Generator, choices: Sequence[str]) -> Iterator[str]:
    return (choices[index] for index in random.permutation(len(choices))[:2])
