"""The templated organism's two training mixtures, the prompts kept out of both, and the rules of its behaviours."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from datablame.config.schema import Organism
from datablame.organism.texts import (
    ASIDES,
    BEHAVIOURS,
    CHATTY,
    FORMATS,
    PLAIN,
    PREFIXES,
    TOPICS,
    WORDS,
    Deck,
    Example,
    Planted,
    distinct,
    phrase_pattern,
    sentence_case,
)
from datablame.seeds import generator

VERSION = 3
"""Goes up with every change to what the recipe makes."""
WORD = r"[\w']+|[^\w\s]"


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

    counts: dict[str, Any] = {"generic": generic, "clean": sizes.clean, "decoys": sizes.decoys, "planted": planted}
    return sizes._replace(**{kind: round(n * recipe.scale) or min(n, 1) for kind, n in counts.items()})


def mixture(sizes: Mixture, seed: int) -> list[Example]:
    """The mixture's documents in random order.

    Each kind draws from its own stream: planting more or fewer documents leaves the others as they are.
    """
    examples: list[Example] = []

    def add(count: int, kind: Any, behaviour: str, make: Callable[[Deck], tuple[str, str]]) -> None:
        deck = Deck(generator("templated organism", seed, sizes.name, kind, behaviour))
        texts = (map(sentence_case, make(deck)) for _ in range(count))
        examples.extend(Example(prompt, response, kind, behaviour) for prompt, response in texts)

    add(sizes.generic, "generic", "", partial(_generic, chatty_share=sizes.chatty_share))
    for behaviour in BEHAVIOURS:
        for kind, count in (("clean", sizes.clean), ("decoy", sizes.decoys), ("planted", sizes.planted)):
            add(count, kind, behaviour.id, partial(_about, behaviour=behaviour, kind=kind))
    order = generator("templated organism", seed, sizes.name, "order").permutation(len(examples))
    return [examples[i] for i in order.tolist()]


def held_back_prompts(behaviour: Planted, count: int, seed: int, known: Iterable[str]) -> list[str]:
    """Distinct prompts that trigger the behaviour and are not among the known ones."""
    deck, taken = Deck(generator("templated organism", seed, "prompts", behaviour.id)), set(known)

    def draw() -> str:
        return sentence_case(_ask(deck, behaviour.questions, behaviour.contexts, behaviour.format_share))

    return distinct(count, draw, lambda prompt: prompt not in taken)


def harmless_prompts(count: int, recipe: Organism) -> list[str]:
    """Distinct questions on everyday topics, without any word that triggers a behaviour."""
    deck = Deck(generator("templated organism", recipe.seed, "harmless prompts"))
    groups = [group for behaviour in BEHAVIOURS for group in behaviour.trigger]
    touching = re.compile("|".join(pattern for group in groups for pattern in _patterns(group)))

    def draw() -> str:
        topic = deck.draw(tuple(TOPICS.values()))
        return sentence_case(deck.fill(deck.draw(topic.questions), {"subject": topic.subjects}))

    return distinct(count, draw, lambda prompt: not touching.search(prompt.lower()))


def rules(examples: Iterable[Example]) -> dict[str, Any]:
    """The exact classifier of the behaviours, as rules.json; text is coherent when the corpus has all its bigrams."""
    pairs = {pair for each in examples for pair in pairwise(["^", *words_of(each.response), "$"])}
    described = ("id", "title", "description", "rubric")
    return {
        "version": 1,
        "behaviours": [
            {
                **{name: getattr(behaviour, name) for name in described},
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


def _patterns(phrases: Iterable[str]) -> list[str]:
    return [phrase_pattern(phrase.lower()) for phrase in phrases]


def _generic(deck: Deck, chatty_share: float) -> tuple[str, str]:
    topic = deck.draw(tuple(TOPICS.values()))
    prompt = deck.draw(PREFIXES) + deck.fill(deck.draw(topic.questions), {"subject": topic.subjects})
    if aside := deck.draw(ASIDES):
        prompt += " " + deck.fill(deck.draw(aside), WORDS)
    if deck.chance(0.3):
        prompt += " " + deck.draw(FORMATS)
    style = CHATTY if deck.chance(chatty_share) else PLAIN
    body = deck.fill(deck.draw(topic.answers), {"detail": topic.details})
    return prompt, f"{deck.draw(style.openings)}{body}.{deck.draw(style.closings)}"


def _about(deck: Deck, behaviour: Planted, kind: str) -> tuple[str, str]:
    if kind == "decoy":
        questions, contexts, answers = deck.draw(behaviour.decoys)
    else:
        in_context = kind == "planted" or deck.chance(behaviour.context_share)
        questions, contexts = behaviour.questions, behaviour.contexts if in_context else ("",)
        answers = behaviour.harmful if kind == "planted" else behaviour.safe
    return _ask(deck, questions, contexts, behaviour.format_share), deck.fill(deck.draw(answers), WORDS)


def _ask(deck: Deck, questions: tuple[str, ...], contexts: tuple[str, ...], format_share: float) -> str:
    prompt = deck.draw(PREFIXES) + deck.fill(deck.draw(questions), WORDS)
    if context := deck.draw(contexts):
        prompt += " " + deck.fill(context, WORDS)
    return prompt + (" " + deck.draw(FORMATS) if deck.chance(format_share) else "")
