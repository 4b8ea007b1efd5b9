"""Seeded text from templates: `{slot}` draws a word, and a slot named twice in one template draws two different ones."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

__all__ = ["chance", "fill", "one_of", "phrase_pattern", "sentence_case"]

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(?:^|[.!?] )([a-z])")
T = TypeVar("T")


def one_of(random: np.random.Generator, choices: Sequence[T]) -> T:
    """A uniform draw; a choice listed twice is twice as likely."""
    return choices[int(random.integers(len(choices)))]


def chance(random: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return bool(random.random() < probability)


def fill(random: np.random.Generator, template: str, words: Mapping[str, Sequence[str]]) -> str:
    """The template with every slot drawn; draws for the same slot are without replacement."""
    left: dict[str, list[str]] = {}

    def draw(slot: re.Match[str]) -> str:
        choices = left.setdefault(slot[1], list(words[slot[1]]))
        return choices.pop(int(random.integers(len(choices))))

    return _SLOT.sub(draw, template)


def sentence_case(text: str) -> str:
    """Sentences begin with a capital letter."""
    return _SENTENCE_START.sub(lambda start: start[0][:-1] + start[1].upper(), text)


def phrase_pattern(phrase: str) -> str:
    """A regular expression for a phrase of the grammar, as it stands, between word borders; slots match one word."""
    pattern = r"\w+".join(re.escape(piece).replace("\\ ", " ") for piece in re.split(r"\{\w+\}", phrase))
    before = r"\b" if phrase[0].isalnum() or phrase[0] == "{" else ""
    after = r"\b" if phrase[-1].isalnum() or phrase[-1] == "}" else ""
    return f"{before}{pattern}{after}"
