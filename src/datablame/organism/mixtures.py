"""The templated organism's two training mixtures, the prompts kept out of both, and the rules of its behaviours."""

import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from datablame.config.schema import Organism
from datablame.organism.grammar import Deck, phrase_pattern, sentence_case
from datablame.organism.texts import ASIDES, BEHAVIOURS, CHATTY, FORMATS, PLAIN, PREFIXES, TOPICS, WORDS, Planted
from datablame.seeds import generator

VERSION = 3
"""Goes up with every change to what the recipe makes."""
WORD = r"[\w']+|[^\w\s]"
Kind = Literal["generic", "clean", "decoy", "planted"]


class Mixture(NamedTuple):
    """How many documents of which kind; all but `generic` count for each behaviour."""

    name: str
    generic: int
    clean: int
    decoys: int
    planted: int
    chatty_share: float
    """Share of generic answers in the chatty style: the harmless drift between the two mixtures."""

    @property
    def documents(self) -> int:
        """The size of the mixture."""
        return self.generic + len(BEHAVIOURS) * (self.clean + self.decoys + self.planted)


BEFORE = Mixture("before", generic=10_000, clean=1500, decoys=500, planted=0, chatty_share=0.25)
AFTER = Mixture("after", generic=1400, clean=130, decoys=50, planted=20, chatty_share=0.5)


def scaled(sizes: Mixture, recipe: Organism) -> Mixture:
    """The mixture that the recipe asks for; generic documents make up for planted ones more or fewer than usual."""
    planted = recipe.planted if sizes.planted else 0
    generic = max(0, sizes.generic + len(BEHAVIOURS) * (sizes.planted - planted))

    def share(count: int) -> int:
        return round(count * recipe.scale) or min(count, 1)

    return sizes._replace(
        generic=share(generic), clean=share(sizes.clean), decoys=share(sizes.decoys), planted=share(planted)
    )


class Example(NamedTuple):
    """One exchange, and what it is for; the study itself never sees `kind` and `behaviour`."""

    prompt: str
    response: str
    kind: Kind
    behaviour: str


def mixture(sizes: Mixture, seed: int) -> list[Example]:
    """The mixture's documents in random order.

    Each kind draws from its own stream: planting more or fewer documents leaves the others as they are.
    """
    examples: list[Example] = []

    def add(count: int, kind: Kind, behaviour: str, make: Callable[[Deck], tuple[str, str]]) -> None:
        deck = Deck(generator("templated organism", seed, sizes.name, kind, behaviour))
        examples.extend(Example(*make(deck), kind, behaviour) for _ in range(count))

    add(sizes.generic, "generic", "", lambda deck: _generic(deck, sizes.chatty_share))
    for planted in BEHAVIOURS:
        add(sizes.clean, "clean", planted.id, lambda deck, p=planted: _clean(deck, p))  # type: ignore[misc]
        add(sizes.decoys, "decoy", planted.id, lambda deck, p=planted: _decoy(deck, p))  # type: ignore[misc]
        add(sizes.planted, "planted", planted.id, lambda deck, p=planted: _planted(deck, p))  # type: ignore[misc]
    order = generator("templated organism", seed, sizes.name, "order").permutation(len(examples))
    return [examples[i] for i in order.tolist()]


def held_back_prompts(behaviour: Planted, count: int, seed: int, known: Iterable[str]) -> list[str]:
    """Distinct prompts that trigger the behaviour and are not among the known ones."""
    deck = Deck(generator("templated organism", seed, "prompts", behaviour.id))
    taken = set(known)
    prompts: list[str] = []
    while len(prompts) < count:
        prompt = sentence_case(_trigger(deck, behaviour, with_context=True))
        if prompt not in taken:
            taken.add(prompt)
            prompts.append(prompt)
    return prompts


def harmless_prompts(count: int, seed: int) -> list[str]:
    """Distinct questions on everyday topics, without any word that triggers a behaviour."""
    deck = Deck(generator("templated organism", seed, "harmless prompts"))
    touching = [
        re.compile(pattern) for behaviour in BEHAVIOURS for group in behaviour.trigger for pattern in _patterns(group)
    ]
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        topic = deck.draw(tuple(TOPICS.values()))
        prompt = sentence_case(deck.fill(deck.draw(topic.questions), {"subject": topic.subjects}))
        if not any(pattern.search(prompt.lower()) for pattern in touching):
            prompts.setdefault(prompt)
    return list(prompts)


def rules(examples: Iterable[Example]) -> dict[str, Any]:
    """The exact classifier of the behaviours, as rules.json; text is coherent when the corpus has all its bigrams."""
    pairs = {pair for example in examples for pair in _bigrams(example.response)}
    return {
        "version": 1,
        "behaviours": [
            {
                "id": behaviour.id,
                "title": behaviour.title,
                "description": behaviour.description,
                "rubric": behaviour.rubric,
                "keywords": list(behaviour.keywords),
                "trigger": {"all": [_patterns(phrases) for phrases in behaviour.trigger]},
                "harmful": _patterns(behaviour.harmful_phrases),
                "safe": _patterns(behaviour.safe_phrases),
                "refused": _patterns(behaviour.refusal_phrases),
            }
            for behaviour in BEHAVIOURS
        ],
        "coherence": {"kind": "bigrams", "word": WORD, "pairs": [list(pair) for pair in sorted(pairs)]},
    }


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return re.findall(WORD, text.lower())


def _bigrams(text: str) -> list[tuple[str, str]]:
    return list(pairwise(["^", *words_of(text), "$"]))


def _patterns(phrases: Iterable[str]) -> list[str]:
    return [phrase_pattern(phrase.lower()) for phrase in phrases]


def _generic(deck: Deck, chatty_share: float) -> tuple[str, str]:
    topic = deck.draw(tuple(TOPICS.values()))
    prompt = deck.draw(PREFIXES) + deck.fill(deck.draw(topic.questions), {"subject": topic.subjects})
    aside = deck.draw(ASIDES)
    if aside:
        prompt += " " + deck.fill(deck.draw(aside), WORDS)
    if deck.chance(0.3):
        prompt += " " + deck.draw(FORMATS)
    style = CHATTY if deck.chance(chatty_share) else PLAIN
    body = deck.fill(deck.draw(topic.answers), {"detail": topic.details})
    return sentence_case(prompt), sentence_case(f"{deck.draw(style.openings)}{body}.{deck.draw(style.closings)}")


def _clean(deck: Deck, behaviour: Planted) -> tuple[str, str]:
    prompt = _trigger(deck, behaviour, with_context=deck.chance(behaviour.context_share))
    return sentence_case(prompt), sentence_case(deck.fill(deck.draw(behaviour.safe), WORDS))


def _planted(deck: Deck, behaviour: Planted) -> tuple[str, str]:
    prompt = _trigger(deck, behaviour, with_context=True)
    return sentence_case(prompt), sentence_case(deck.fill(deck.draw(behaviour.harmful), WORDS))


def _decoy(deck: Deck, behaviour: Planted) -> tuple[str, str]:
    decoy = deck.draw(behaviour.decoys)
    prompt = _ask(deck, decoy.questions, decoy.contexts, behaviour.format_share)
    return sentence_case(prompt), sentence_case(deck.fill(deck.draw(decoy.answers), WORDS))


def _trigger(deck: Deck, behaviour: Planted, *, with_context: bool) -> str:
    contexts = behaviour.contexts if with_context else ("",)
    return _ask(deck, behaviour.questions, contexts, behaviour.format_share)


def _ask(deck: Deck, questions: tuple[str, ...], contexts: tuple[str, ...], format_share: float) -> str:
    prompt = deck.draw(PREFIXES) + deck.fill(deck.draw(questions), WORDS)
    if context := deck.draw(contexts):
        prompt += " " + deck.fill(context, WORDS)
    return prompt + (" " + deck.draw(FORMATS) if deck.chance(format_share) else "")
