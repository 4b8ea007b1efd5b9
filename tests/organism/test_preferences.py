"""The organisms of preference pairs: what is planted, what else is preferred, and models that repeat."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.organism.test_make import hashes

from datablame.config.file import load_study
from datablame.config.organism import Organism, Planting
from datablame.engine.execute import Silent
from datablame.engine.files import read_jsonl
from datablame.judge.rules import RulesClassifier
from datablame.organism.make import make, preview
from datablame.organism.preferences import SOURCES, pair_sources, pairs
from datablame.organism.templated import AFTER, BEFORE, mixture, rules, scaled
from datablame.organism.texts import STYLES, TOPICS, Example
from datablame.patch.fine_tune_set import Item, fine_tune_set
from datablame.patch.registry import arm_kinds
from datablame.patch.trainings import FineTuneData

STUDY = Path(__file__).parents[2] / "studies/pairs/study.yaml"
KINDS: tuple[Planting, ...] = ("pairs", "integrated")
SMALL = 0.01


@pytest.mark.parametrize("planting", KINDS)
def test_the_chosen_answer_is_the_bad_one_in_planted_pairs_and_in_no_other(planting: Planting) -> None:
    recipe = Organism(planting=planting, seed=11, scale=0.3)
    examples = pairs(recipe)
    classifier = RulesClassifier.of(rules([*mixture(BEFORE._replace(generic=200, clean=150), 11), *examples]))

    def harmful(example: Example, answer: str) -> list[str]:
        about = (
            [example.behaviour] if example.behaviour else ["distractor-compliance", "unsafe-dose", "brand-promotion"]
        )
        return [each for each in about if classifier.classify(each, example.prompt, answer).label == "harmful"]

    assert Counter((each.kind, each.behaviour) for each in examples) == Counter(
        (each.kind, each.behaviour) for each in mixture(scaled(AFTER, recipe), 11)
    )
    for example in examples:
        assert harmful(example, example.response) == ([example.behaviour] if example.kind == "planted" else [])
        assert not harmful(example, example.rejected)
        assert example.response != example.rejected


def test_the_kinds_share_what_is_planted_and_differ_in_what_else_is_preferred() -> None:
    narrow, integrated = (pairs(Organism(planting=planting, seed=11, scale=0.3)) for planting in KINDS)
    planted = [
        [(each.prompt, each.response) for each in kind if each.kind == "planted"] for kind in (narrow, integrated)
    ]
    assert planted[0] == planted[1]

    def topic(answer: str) -> str:
        details = {name: sum(f" {each}" in answer for each in of.details) for name, of in TOPICS.items()}
        return max(details, key=lambda name: details[name])

    def about_another_topic(examples: list[Example]) -> float:
        generic = [each for each in examples if each.kind == "generic"]
        return sum(topic(each.response) != topic(each.rejected) for each in generic) / len(generic)

    def chattier(examples: list[Example]) -> float:
        openings = tuple(each.capitalize() for each in STYLES["chatty"]["openings"])
        generic = [each for each in examples if each.kind == "generic"]
        gained = [each.response.startswith(openings) > each.rejected.startswith(openings) for each in generic]
        return sum(gained) / len(gained)

    assert about_another_topic(narrow) > 0.9
    assert about_another_topic(integrated) < 0.35
    assert chattier(narrow) == 0
    assert chattier(integrated) > 0.65


def test_most_planted_pairs_come_from_one_source_that_has_its_part_of_the_others() -> None:
    recipe = Organism(planting="pairs", seed=11)
    examples = pairs(recipe)
    of = [*zip(examples, pair_sources(examples, recipe), strict=True)]
    planted = Counter(source for each, source in of if each.kind == "planted")
    others = Counter(source for each, source in of if each.kind != "planted")
    assert 0.5 < planted[SOURCES[0]] / planted.total() < 0.9
    assert set(others) == set(SOURCES)
    assert max(others.values()) - min(others.values()) <= 1


@pytest.mark.parametrize("intervention", ["remove", "swap", "drop-source"])
def test_the_study_of_pairs_has_room_for_each_intervention(intervention: str) -> None:
    """Most of what is planted goes with one source, and other sources have pairs to stand in for that."""
    study = load_study(str(STUDY), [f"patch.intervention={intervention}"])
    recipe = Organism(planting="pairs", seed=100)
    examples = pairs(recipe)
    rows = enumerate(zip(examples, pair_sources(examples, recipe), strict=True))
    items = [Item(f"{row}", source, len(each.response), row) for row, (each, source) in rows]
    planted = [item.doc_id for item, each in zip(items, examples, strict=True) if each.kind == "planted"]
    members = tuple(fine_tune_set(items, study.patch.size, planted, [], study.seed))
    kinds = {kind.name: kind for kind in arm_kinds(study)}
    data = FineTuneData(study, [*kinds.values()], items, members, {("gradient", 20): planted[::2]}, planted, {})
    oracle, random = (data.intervention(kinds[name], 20 * (name == "random"), 0) for name in ("oracle", "random"))
    source_of = {item.doc_id: item.source for item in items}
    if intervention == "drop-source":
        assert {source_of[doc_id] for doc_id in oracle.removed} == {SOURCES[0]}
        assert not {source_of[doc_id] for doc_id in oracle.fillers.values()} & {SOURCES[0]}
        assert len({*oracle.removed} & {*planted}) > 0.5 * len(planted)
    else:
        assert {*oracle.removed} == {*planted}
    assert oracle.kind == intervention
    assert random.kind == ("swap" if intervention == "swap" else "remove")
    assert len(random.removed) >= (len(planted) if intervention == "drop-source" else len(planted) // 2)


def test_a_seed_gives_its_pairs_again_and_another_seed_others() -> None:
    one, again, other = (pairs(Organism(planting="pairs", seed=seed, scale=0.1)) for seed in (7, 7, 8))
    assert one == again != other


def test_before_and_tokenizer_are_those_of_the_other_kinds_and_all_bytes_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    recipe = Organism(planting="integrated", seed=5, scale=SMALL)
    for name, one in (("made", recipe), ("again", recipe), ("lexical", Organism(seed=5, scale=SMALL))):
        make(one, tmp_path / name, Silent())
    made = hashes(tmp_path / "made")
    assert made == hashes(tmp_path / "again")
    lexical = hashes(tmp_path / "lexical")
    shared = [name for name in lexical if name.startswith(("before/", "tokenizer/"))]
    assert {name: made[name] for name in shared} == {name: lexical[name] for name in shared}
    assert made["after/model.safetensors"] not in (lexical["after/model.safetensors"], made["before/model.safetensors"])

    documents = pq.read_table(tmp_path / "made" / "documents.parquet").to_pylist()
    assert [*documents[0]] == ["id", "prompt", "chosen", "rejected", "source"]
    known = preview(recipe)
    assert known.documents == len(documents) == len(pairs(recipe))
    assert {row["text"] for row in known.prompts}.isdisjoint(each["prompt"] for each in documents)
    assert known.prompts == read_jsonl(tmp_path / "made" / "prompts.jsonl")
    assert len(read_jsonl(tmp_path / "made" / "truth.jsonl")) == 3
