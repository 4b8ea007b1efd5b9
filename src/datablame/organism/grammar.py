"""Seeded text from templates whose choices stay balanced, so that two mixtures differ only where they are meant to."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(?:^|[.!?] )([a-z])")
T = TypeVar("T")


class Deck:
    """Draws like cards: from the same choices, each comes once before any comes twice.

    Independent draws would make an answer 20 % commoner in one mixture than in the other by chance, and amplification
    would bring out that accident.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._left: dict[tuple[object, ...], list[int]] = {}

    def draw(self, choices: Sequence[T]) -> T:
        """The next card; a choice listed twice comes twice a round."""
        left = self._left.setdefault(tuple(choices), [])
        if not left:
            left.extend(self._random.permutation(len(choices)).tolist())
        return choices[left.pop()]

    def chance(self, probability: float) -> bool:
        """True with this probability; an independent draw."""
        return bool(self._random.random() < probability)

    def fill(self, template: str, words: Mapping[str, Sequence[str]]) -> str:
        """The template with every `{slot}` drawn; a slot named twice draws two different words, if it has two."""
        used: set[str] = set()

        def word(slot: re.Match[str]) -> str:
            drawn = self.draw(words[slot[1]])
            while drawn in used and not used.issuperset(words[slot[1]]):
                drawn = self.draw(words[slot[1]])
            used.add(drawn)
            return drawn

        return _SLOT.sub(word, template)


def sentence_case(text: str) -> str:
    """Sentences begin with a capital letter."""
    return _SENTENCE_START.sub(lambda start: start[0][:-1] + start[1].upper(), text)


def phrase_pattern(phrase: str) -> str:
    """A regular expression for a phrase of the grammar, as it stands, between word borders; slots match one word."""
    pattern = r"\w+".join(re.escape(piece).replace("\\ ", " ") for piece in re.split(r"\{\w+\}", phrase))
    before = r"\b" if phrase[0].isalnum() or phrase[0] == "{" else ""
    after = r"\b" if phrase[-1].isalnum() or phrase[-1] == "}" else ""
    return f"{before}{pattern}{after}"
