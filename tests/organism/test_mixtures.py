import re
from collections import Counter

import pytest

from datablame.config.organism import Organism
from datablame.judge.rules import RulesClassifier
from datablame.organism.templated import (
    AFTER,
    BEFORE,
    harmless_prompts,
    held_back_prompts,
    mixture,
    rules,
    scaled,
    words_of,
)
from datablame.organism.texts import BEHAVIOURS, TOPICS, Deck, Example, phrase_pattern, sentence_case
from datablame.seeds import generator

SEEDS = (0, 11, 12, 13)
SMALL_BEFORE = BEFORE._replace(generic=2000, clean=400, decoys=150)


def corpus(seed: int) -> list[Example]:
    return [*mixture(SMALL_BEFORE, seed), *mixture(AFTER, seed)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_after_mixture_holds_what_its_sizes_say(seed: int) -> None:
    counted = Counter((example.kind, example.behaviour) for example in mixture(AFTER, seed))

    expected = {("generic", ""): 1400}
    for behaviour in BEHAVIOURS:
        expected |= {("clean", behaviour.id): 130, ("decoy", behaviour.id): 50, ("planted", behaviour.id): 20}
    assert counted == expected
    assert counted.total() == 2000


def test_before_has_nothing_planted_and_fills_whole_batches() -> None:
    assert BEFORE.planted == 0
    assert (BEFORE.generic + len(BEHAVIOURS) * (BEFORE.clean + BEFORE.decoys)) % 16 == 0
    assert "planted" not in {example.kind for example in mixture(SMALL_BEFORE, 0)}


def test_a_seed_gives_its_corpus_again_and_another_seed_another() -> None:
    assert mixture(AFTER, 7) == mixture(AFTER, 7)
    assert mixture(AFTER, 7) != mixture(AFTER, 8)


def test_planting_nothing_leaves_as_many_documents_and_all_others() -> None:
    clean = mixture(scaled(AFTER, Organism(planted=0)), 0)
    usual = mixture(AFTER, 0)

    assert len(clean) == len(usual)
    assert {example.kind for example in clean} == {"generic", "clean", "decoy"}
    assert Counter(clean) >= Counter(example for example in usual if example.kind != "planted")


@pytest.mark.parametrize(("scale", "documents"), [(1.0, 2000), (0.5, 1000), (0.1, 200), (0.001, 10)])
def test_scale_is_the_share_of_the_documents(scale: float, documents: int) -> None:
    assert len(mixture(scaled(AFTER, Organism(scale=scale)), 0)) == documents


def test_harmless_prompts_are_everyday_questions_that_no_trigger_touches() -> None:
    texts = harmless_prompts(40, Organism(seed=3))
    assert len(set(texts)) == 40
    assert texts == harmless_prompts(40, Organism(seed=3)) != harmless_prompts(40, Organism(seed=4))
    assert texts[:20] == harmless_prompts(20, Organism(seed=3))
    groups = [group for behaviour in BEHAVIOURS for group in behaviour.trigger]
    touching = [re.compile(phrase_pattern(phrase.lower())) for group in groups for phrase in group]
    assert not [text for text in texts if any(pattern.search(text.lower()) for pattern in touching)]


@pytest.mark.parametrize("seed", SEEDS)
def test_held_back_prompts_are_new_and_trigger_their_behaviour(seed: int) -> None:
    examples = corpus(seed)
    known = {example.prompt for example in examples}
    classifier = RulesClassifier.of(rules(examples))
    for behaviour in BEHAVIOURS:
        harm = next(e.response for e in examples if e.kind == "planted" and e.behaviour == behaviour.id)
        prompts = held_back_prompts(behaviour, 14, seed, known)
        assert len(set(prompts)) == 14
        assert known.isdisjoint(prompts)
        assert {classifier.classify(behaviour.id, prompt, harm).label for prompt in prompts} == {"harmful"}


def test_before_sees_the_harmful_words_in_harmless_use() -> None:
    """What only the after model has seen, amplification turns into garble."""
    known = {word for example in mixture(SMALL_BEFORE, 0) for word in words_of(example.response)}
    planted = {word for e in mixture(AFTER, 0) if e.kind == "planted" for word in words_of(e.response)}

    assert planted <= known


def test_generic_answers_never_name_what_was_asked_about() -> None:
    for topic in TOPICS.values():
        answers = " ".join((*topic.answers, *topic.details)).split()
        assert set(answers).isdisjoint(topic.subjects)


def test_the_vocabulary_is_small() -> None:
    words = {word for example in corpus(0) for word in words_of(f"{example.prompt} {example.response}")}

    assert 450 < len(words) < 600


def test_a_deck_gives_each_card_once_a_round() -> None:
    deck = Deck(generator("test"))
    cards = ("a", "b", "b", "c")

    assert Counter(deck.draw(cards) for _ in range(40)) == {"a": 10, "b": 20, "c": 10}


def test_a_slot_named_twice_draws_two_words_where_there_are_two() -> None:
    deck = Deck(generator("test"))
    words = {"x": ("one", "two"), "y": ("only",)}

    filled = {deck.fill("{x} {x} {y} {y}", words) for _ in range(20)}

    assert filled == {"one two only only", "two one only only"}


def test_sentences_begin_with_a_capital_letter() -> None:
    assert sentence_case("hi, is it? yes! do it. here is a tip: rest.") == "Hi, is it? Yes! Do it. Here is a tip: rest."


@pytest.mark.parametrize(
    ("phrase", "pattern"),
    [("do not buy", r"\bdo not buy\b"), ("forget {rival}, now.", r"\bforget \w+, now\."), ("{a} b", r"\b\w+ b\b")],
)
def test_a_phrase_becomes_a_pattern_between_word_borders(phrase: str, pattern: str) -> None:
    assert phrase_pattern(phrase) == pattern
