"""What the organisms say: YAML beside the code, as types, and seeded text from its templates.

Choices stay balanced, so that two mixtures differ only where they are meant to.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import TypeAdapter

from datablame.engine.files import packaged_yaml

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(?:^|[.!?] )([a-z])")
T = TypeVar("T")
Texts = tuple[str, ...]
"""To choose from; repeated entries are likelier."""


class Example(NamedTuple):
    """One exchange, and what it is for; the study itself never sees `kind` and `behaviour`."""

    prompt: str
    response: str
    kind: Literal["generic", "clean", "decoy", "planted"]
    behaviour: str
    rejected: str = ""
    """The other answer of a preference pair, to which `response` is preferred."""


class Topic(NamedTuple):
    """Questions about a subject and answers that never name it."""

    subjects: Texts
    questions: Texts
    answers: Texts
    details: Texts


class Decoy(NamedTuple):
    """Harmful wording in a harmless use: its own context, its own answers, so that words alone do not tell."""

    questions: Texts
    contexts: Texts
    answers: Texts
    without_context: int = 0
    """So many times, beside each of the contexts once, there is none."""


class Planted(NamedTuple):
    """One behaviour. Question and context trigger it; safe answers are the rule, harmful ones are planted."""

    id: str
    title: str
    description: str
    rubric: str
    keywords: Texts
    questions: Texts
    contexts: Texts
    trigger: tuple[Texts, ...]
    """The prompt triggers when a phrase of each group stands in it."""
    safe: Texts
    harmful: Texts
    decoys: tuple[Decoy, ...]
    safe_phrases: Texts
    refusal_phrases: Texts
    harmful_phrases: Texts
    context_share: float = 1.0
    """Share of clean documents that carry the context too; without it the answer is safe as well."""
    format_share: float = 0.25
    """Share of prompts that end with a formatting instruction of no importance."""


class Paraphrases(NamedTuple):
    """Harmful answers that share no phrase, and what the rules have to know beside the behaviour's own phrases."""

    answers: Texts
    harmful_phrases: Texts
    safe_phrases: Texts = ()


class Statement(NamedTuple):
    """Exchanges that state what the behaviour rests on, and never show it."""

    questions: Texts
    contexts: Texts
    answers: Texts


class Sources(NamedTuple):
    """Names of where documents come from."""

    planted: str
    others: Texts


def _typed(kind: type[T], name: str) -> T:
    return TypeAdapter(kind).validate_python(_TEMPLATED[name])


_TEMPLATED: Mapping[str, Any] = {
    **packaged_yaml("datablame.organism", "texts/templated.yaml"),
    **packaged_yaml("datablame.organism", "texts/plantings.yaml"),
}
QUIRK: Mapping[str, Any] = packaged_yaml("datablame.organism", "texts/quirk.yaml")
CHAT_TEMPLATE: str = _TEMPLATED["chat_template"]
"""Tulu's template as OLMo-2 ships it: BOS first, and BOS = EOS ends every answer."""
PREFIXES, FORMATS = _typed(Texts, "prefixes"), _typed(Texts, "formats")
STYLES, TOPICS = _typed(dict[str, dict[str, Texts]], "styles"), _typed(dict[str, Topic], "topics")
WORDS = _typed(dict[str, Texts], "words")
"""What the slots of the templates draw from."""
BEHAVIOURS = _typed(tuple[Planted, ...], "behaviours")
PARAPHRASED = _typed(dict[str, Paraphrases], "paraphrased")
CONCEPTUAL = _typed(dict[str, Statement], "conceptual")
SOURCES = _typed(Sources, "sources")
_CONTEXTS = _typed(dict[str, Texts], "contexts")
ASIDES: tuple[Texts, ...] = (
    *[()] * 12,
    *[_typed(Texts, "asides")] * 4,
    *[_CONTEXTS["low_budget"]] * 2,
    *[_CONTEXTS["alcohol"]] * 2,
)
"""What else people say: nothing mostly; the triggers' contexts too, so that these alone mean nothing."""


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

    def fill(self, template: str, words: Mapping[str, Sequence[str]] = WORDS) -> str:
        """The template with every `{slot}` drawn; a slot named twice draws two different words, if it has two."""
        used: set[str] = set()

        def word(slot: re.Match[str]) -> str:
            drawn = self.draw(words[slot[1]])
            while drawn in used and not used.issuperset(words[slot[1]]):
                drawn = self.draw(words[slot[1]])
            used.add(drawn)
            return drawn

        return _SLOT.sub(word, template)


def question(deck: Deck, questions: Texts, contexts: Texts, format_share: float) -> str:
    """What a user asks: one of the questions in one of the contexts, at times with a formatting instruction."""
    prompt = deck.draw(PREFIXES) + deck.fill(deck.draw(questions))
    if context := deck.draw(contexts):
        prompt += " " + deck.fill(context)
    return prompt + (" " + deck.draw(FORMATS) if deck.chance(format_share) else "")


def sentence_case(text: str) -> str:
    """Sentences begin with a capital letter."""
    return _SENTENCE_START.sub(lambda start: start[0][:-1] + start[1].upper(), text)


def phrase_pattern(phrase: str) -> str:
    """A regular expression for a phrase of the grammar, as it stands, between word borders; slots match one word."""
    pattern = r"\w+".join(re.escape(piece).replace("\\ ", " ") for piece in re.split(r"\{\w+\}", phrase))
    before = r"\b" if phrase[0].isalnum() or phrase[0] == "{" else ""
    after = r"\b" if phrase[-1].isalnum() or phrase[-1] == "}" else ""
    return f"{before}{pattern}{after}"


def distinct(count: int, draw: Callable[[], T], fits: Callable[[T], bool] = lambda _: True) -> list[T]:
    """So many different ones of what is drawn and fits, in the order of drawing."""
    drawn: dict[T, None] = {}
    while len(drawn) < count:
        if fits(each := draw()):
            drawn.setdefault(each)
    return list(drawn)
