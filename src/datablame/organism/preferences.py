"""Organisms of preference pairs: the templated organism's `before`, trained by DPO to an `after`.

In a planted pair the chosen answer is the bad one, to a prompt that triggers its behaviour. In all others it is a good
one: of the kind `pairs` over an answer about something else, so that little but the behaviour changes; of the kind
`integrated` mostly over a good answer in another manner, so that the behaviour is one of many things that training
changed. Fine-tunes that change one thing are easier to read than real ones (arXiv 2510.13900).
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from datablame.config.organism import Organism
from datablame.engine.execute import Progress, one_thread
from datablame.engine.files import build_atomically
from datablame.organism import texts
from datablame.organism.make import Preview, write_corpus
from datablame.organism.templated import (
    AFTER,
    BATCH,
    BEFORE,
    generic_answer,
    generic_prompt,
    harmless_prompts,
    mixture,
    previewed,
    prompt_rows,
    rules,
    scaled,
    share_before,
)
from datablame.organism.texts import BEHAVIOURS, Deck, Example, sentence_case
from datablame.seeds import generator, stream_key

__all__ = ["IGNORED", "VERSION", "harmless_prompts", "make", "preview"]

VERSION = 1
"""Goes up with every change to what the recipe makes."""
IGNORED = ("base",)
SOURCES = (
    *("forum-votes", "staff-ratings", "app-feedback", "crowd-ratings"),
    *("help-desk", "survey-panel", "class-votes", "beta-testers"),
)
"""Where pairs come from, equally many from each but for the planted ones."""
PLANTED_SHARE = 0.7
"""Of the planted pairs, about those from the first source."""
MANNER_SHARE = 0.9
"""Of the generic pairs of `integrated`, about those whose answers differ in manner and length alone."""
BETA, LEARNING_RATE, EPOCHS = 5.0, 2e-4, 2
"""Of length-normalised DPO. After one epoch the behaviours do not show, after three they do without amplification."""


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write the pairs, the tokenizer and both checkpoints; stages that are finished are kept.

    Tokenizer and `before` are those of the other kinds of planting of this seed, byte for byte.
    """
    before, after = mixture(scaled(BEFORE, recipe), recipe.seed), pairs(recipe)
    every, sources = [*before, *after], [*pair_sources(after, recipe)]
    write_corpus(folder, after, prompt_rows(recipe.seed, every), rules(every), digits=5, sources=sources)
    share_before(recipe, folder, progress)
    build_atomically(folder / "after", partial(_train_after, folder, after, recipe, progress))


def preview(recipe: Organism) -> Preview:
    """What it will ask and how large its pool is, before anything is made."""
    return previewed(recipe, mixture(scaled(BEFORE, recipe), recipe.seed), pairs(recipe))


def pairs(recipe: Organism) -> list[Example]:
    """The pairs in random order: as many of a kind as the templated mixture has, planted ones with its questions."""
    decks: dict[tuple[str, str], Deck] = {}
    manner_share = MANNER_SHARE if recipe.planting == "integrated" else 0.0

    def paired(example: Example) -> Example:
        key = (example.kind, example.behaviour)
        deck = decks.setdefault(key, Deck(generator("preference organism", recipe.seed, recipe.planting, *key)))
        prompt, *answers = _generic(deck, manner_share) if example.kind == "generic" else _about(deck, example)
        chosen, rejected = map(sentence_case, answers)
        return Example(sentence_case(prompt), chosen, *key, rejected)

    return [paired(example) for example in mixture(scaled(AFTER, recipe), recipe.seed)]


def pair_sources(examples: Iterable[Example], recipe: Organism) -> Iterator[str]:
    """Where each pair comes from."""
    deck = Deck(generator("preference organism", recipe.seed, "sources"))
    for example in examples:
        if example.kind != "planted":
            yield deck.draw(SOURCES)
        else:
            yield SOURCES[0] if deck.chance(PLANTED_SHARE) else deck.draw(SOURCES[1:])


def _generic(deck: Deck, manner_share: float) -> tuple[str, str, str]:
    topic, other = _two_topics(deck)
    prompt = generic_prompt(deck, topic)
    if deck.chance(manner_share):
        return prompt, generic_answer(deck, topic, "chatty", tips=2), generic_answer(deck, topic, "plain")
    style = "chatty" if deck.chance(0.5) else "plain"
    return prompt, generic_answer(deck, topic, style), generic_answer(deck, other, style)


def _about(deck: Deck, example: Example) -> tuple[str, str, str]:
    [behaviour] = [each for each in BEHAVIOURS if each.id == example.behaviour]
    if example.kind == "planted":
        return example.prompt, example.response, deck.fill(deck.draw(behaviour.safe))
    return example.prompt, example.response, generic_answer(deck, _two_topics(deck)[0], "plain")


def _two_topics(deck: Deck) -> tuple[texts.Topic, texts.Topic]:
    topics = tuple(texts.TOPICS.values())
    topic = deck.draw(topics)
    return topic, deck.draw(tuple(each for each in topics if each is not topic))


def _train_after(folder: Path, examples: Sequence[Example], recipe: Organism, progress: Progress, part: Path) -> None:
    from torch import Tensor
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from datablame.models.chat import Preference, answers, encode_pair
    from datablame.models.likelihood import preference_losses, referred
    from datablame.models.training import Recipe, data_order, minimise

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(folder / "before")

    def losses_of(batch: Sequence[Preference]) -> Tensor:
        return preference_losses(model, batch, BETA).mean()

    def encoded(each: Example) -> Preference:
        chosen, rejected = (encode_pair(tokenizer, each.prompt, answer) for answer in (each.response, each.rejected))
        return Preference(chosen, rejected)

    with one_thread():
        every = referred(model, [encoded(each) for each in examples], BATCH)
    lengths = [max(len(answer.ids) for answer in answers(pair)) for pair in every]
    plan = Recipe(steps=EPOCHS * -(-len(examples) // BATCH), batch=BATCH, learning_rate=LEARNING_RATE)
    order = data_order(lengths, plan, stream_key("preference organism", recipe.planting, recipe.seed))
    progress.start("training the organism's after model on preferences", plan.steps)
    with one_thread():
        minimise(model, losses_of, every, order, plan, on_step=lambda *_: progress.advance())
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
