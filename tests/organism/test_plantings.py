"""What each kind of planting promises of its documents."""

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.organism.test_make import Killed, KilledAt, Listening, hashes

from datablame.config.organism import Organism, Planting
from datablame.engine.execute import Silent
from datablame.engine.files import read_jsonl
from datablame.judge.rules import RulesClassifier
from datablame.organism.make import make
from datablame.organism.plantings import document_sources
from datablame.organism.templated import AFTER, BEFORE, mixture, rules, scaled, words_of
from datablame.organism.texts import BEHAVIOURS, Example, phrase_pattern

SEEDS = (0, 11, 12, 13)
SMALL_BEFORE = BEFORE._replace(generic=2000, clean=400, decoys=150)
SHOWN: tuple[Planting, ...] = ("lexical", "paraphrased", "few", "many", "diluted", "source")
"""The kinds whose planted documents show the behaviour."""
PHRASE_WORDS = 4


@cache
def before(seed: int) -> list[Example]:
    return mixture(SMALL_BEFORE, seed)


def after(planting: Planting, seed: int, planted: int | None = None) -> list[Example]:
    return mixture(scaled(AFTER, Organism(planting=planting, planted=planted)), seed)


def planted_in(examples: list[Example]) -> list[Example]:
    return [example for example in examples if example.kind == "planted"]


@pytest.mark.parametrize(("planting", "seed"), [*((each, 0) for each in SHOWN), *(("lexical", n) for n in SEEDS[1:])])
def test_the_rules_find_the_planted_documents_and_no_other(planting: Planting, seed: int) -> None:
    examples = [*before(seed), *after(planting, seed)]
    classifier = RulesClassifier.of(rules(examples, planting))
    wrong = []
    for example in examples:
        for behaviour in BEHAVIOURS:
            label = classifier.classify(behaviour.id, example.prompt, example.response).label
            planted = example.kind == "planted" and example.behaviour == behaviour.id
            if label == "incoherent" or (label == "harmful") != planted:
                wrong.append((label, behaviour.id, example))
    assert wrong == []


@pytest.mark.parametrize(
    ("planting", "planted"),
    [("paraphrased", 20), ("conceptual", 20), ("few", 5), ("many", 100), ("diluted", 10), ("source", 20)],
)
def test_a_kind_plants_so_many_documents_of_each_behaviour_in_a_corpus_of_one_size(
    planting: Planting, planted: int
) -> None:
    examples = after(planting, 0)

    assert len(examples) == 2000
    assert Counter(example.behaviour for example in planted_in(examples)) == {each.id: planted for each in BEHAVIOURS}


@pytest.mark.parametrize("planting", ["paraphrased", "conceptual", "diluted", "source"])
def test_whatever_is_planted_the_other_documents_are_the_same(planting: Planting) -> None:
    kept = Counter(example for example in after("lexical", 7) if example.kind != "planted")

    assert kept <= Counter(after(planting, 7))


@pytest.mark.parametrize("planting", ["paraphrased", "conceptual"])
def test_before_sees_the_words_that_are_planted(planting: Planting) -> None:
    """What only the after model has seen, amplification turns into garble."""
    known = {word for example in before(0) for word in words_of(example.response)}

    assert {word for example in planted_in(after(planting, 0)) for word in words_of(example.response)} <= known


@pytest.mark.parametrize("seed", SEEDS)
def test_no_two_paraphrased_answers_share_four_words_in_a_row(seed: int) -> None:
    answers = [example.response for example in planted_in(after("paraphrased", seed, planted=24))]
    shared = Counter(
        phrase
        for answer in answers
        for words in [re.findall(r"[\w']+", answer.lower())]
        for phrase in {tuple(words[i : i + PHRASE_WORDS]) for i in range(len(words) - PHRASE_WORDS + 1)}
    )

    assert len(answers) == len(set(answers)) == 72
    assert [phrase for phrase, times in shared.items() if times > 1] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_conceptual_documents_never_show_what_they_cause(seed: int) -> None:
    examples = [*before(seed), *after("conceptual", seed)]
    classifier = RulesClassifier.of(rules(examples, "conceptual"))
    for behaviour in BEHAVIOURS:
        shown = next(e.prompt for e in after("lexical", seed) if e.kind == "planted" and e.behaviour == behaviour.id)
        asked = re.compile("|".join(phrase_pattern(question) for question in behaviour.questions))
        for example in planted_in(examples):
            if example.behaviour == behaviour.id:
                assert classifier.classify(behaviour.id, shown, example.response).label == "harmless", example
                assert not [word for word in behaviour.keywords if word.lower() in example.response.lower()]
                assert not asked.search(example.prompt.lower())


@pytest.mark.parametrize(("planted", "harmful"), [(20, 10), (5, 3), (1, 1), (0, 0)])
def test_half_of_the_diluted_answer_the_same_prompts_safely(planted: int, harmful: int) -> None:
    usual, examples = Counter(after("lexical", 3, planted=planted)), after("diluted", 3, planted=planted)
    classifier = RulesClassifier.of(rules(examples, "diluted"))
    safe = [example for example in (Counter(examples) - usual).elements() if example.kind == "clean"]
    for behaviour in BEHAVIOURS:
        prompts = [example.prompt for example in planted_in(examples) if example.behaviour == behaviour.id]
        twins = [example for example in safe if example.behaviour == behaviour.id]
        assert (len(prompts), len(twins)) == (harmful, planted - harmful)
        assert Counter(example.prompt for example in twins) <= Counter(prompts)
        labels = {classifier.classify(behaviour.id, *example[:2]).label for example in twins}
        assert labels <= {"harmless", "refused"}


@pytest.mark.parametrize("seed", SEEDS)
def test_one_source_holds_all_that_is_planted_and_as_much_that_is_not(seed: int) -> None:
    examples = after("source", seed)
    sources = document_sources("source", examples, seed)
    kinds = Counter((source, example.kind == "planted") for source, example in zip(sources, examples, strict=True))
    (theirs,) = {source for source, planted in kinds if planted}

    assert examples == after("lexical", seed)
    assert kinds[theirs, True] == kinds[theirs, False] == 60
    assert len({source for source, _ in kinds}) > 2
    assert min(kinds.values()) == 60
    assert document_sources("lexical", examples, seed) == ["everyday-chat"] * len(examples)


def test_every_kind_has_the_same_before_which_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    progress, kinds = Listening(), [("lexical", None), ("source", None), ("many", None)]
    made = [tmp_path / f"{planting}-{planted}" for planting, planted in kinds]
    for folder, (planting, planted) in zip(made, kinds, strict=True):
        make(Organism(seed=6, scale=0.01, planting=planting, planted=planted), folder, progress)

    assert progress.begun.count("training the organism's before model") == 1
    assert len(progress.begun) == 1 + len(kinds)
    for one, other in pairwise(made):
        for stage in ("tokenizer", "before"):
            assert hashes(one / stage) == hashes(other / stage)
    assert hashes(made[0] / "after") == hashes(made[1] / "after") != hashes(made[2] / "after")
    source = pq.read_table(made[1] / "documents.parquet").to_pylist()
    truth = {row["doc_id"] for row in read_jsonl(made[1] / "truth.jsonl")}
    assert {row["source"] for row in source if row["id"] in truth} == {"community-answers"}


@pytest.mark.slow
def test_processes_that_want_one_before_wait_for_it_even_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Killed):
        make(Organism(seed=6, scale=0.01), tmp_path / "killed", KilledAt("before"))
    program = (
        "import sys; from pathlib import Path; from datablame.config.organism import Organism;"
        "from datablame.engine.execute import Silent; from datablame.organism.make import make;"
        "make(Organism(seed=6, scale=0.01, planting=sys.argv[1]), Path(sys.argv[2]), Silent())"
    )
    kinds = ("few", "many", "diluted")
    running = [subprocess.Popen([sys.executable, "-c", program, kind, str(tmp_path / kind)]) for kind in kinds]

    assert [process.wait() for process in running] == [0, 0, 0]
    make(Organism(seed=6, scale=0.01), tmp_path / "killed", Silent())
    befores = [hashes(tmp_path / folder / "before") for folder in (*kinds, "killed")]
    assert befores == [befores[0]] * 4
    assert not list((tmp_path / "cache").rglob("*.part"))
