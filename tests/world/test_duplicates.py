import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.worlds import read_pool

from datablame.config.schema import Data
from datablame.tables import Document, Message
from datablame.world import duplicates
from datablame.world.duplicates import full_text, hashed

WORDS = st.sampled_from(["ash", "bay", "cow", "day", "elm", "fog", "gum", "hay"])
TEXTS = st.lists(WORDS, min_size=1, max_size=14).map(" ".join)


def clusters(documents: Iterable[Document], threshold: float) -> list[int]:
    return duplicates.clusters((hashed(document, threshold) for document in documents), threshold)


@st.composite
def corpora(draw: st.DrawFn) -> list[str]:
    """Texts, and copies of some of them with a word changed, so that all similarities occur."""
    texts = draw(st.lists(TEXTS, min_size=1, max_size=8))
    for text in draw(st.lists(st.sampled_from(texts), max_size=8)):
        words = text.split()
        words[draw(st.integers(0, len(words) - 1))] = draw(WORDS)
        texts.append(" ".join(words))
    return texts


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(str(number), "made", (), text) for number, text in enumerate(texts)]


def brute_force(documents: Sequence[Document], threshold: float) -> list[int]:
    """Connected components of the graph whose edges are pairs at least so similar, every pair compared."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    def similarity(*texts: str) -> float:
        one, other = map(shingles, texts)
        return len(one & other) / len(one | other)

    component = list(range(len(documents)))
    for a, b in itertools.combinations(range(len(documents)), 2):
        one, other = documents[a], documents[b]
        parts = [(full_text(one), full_text(other)), (one.response, other.response), (one.rejected, other.rejected)]
        if all(similarity(*pair) >= threshold if threshold < 1 else pair[0] == pair[1] for pair in parts):
            component = [component[a] if number == component[b] else number for number in component]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(number, len(numbers)) for number in component]


@settings(max_examples=100)
@given(corpora(), st.sampled_from((0.3, 0.5, 0.8, 0.95, 1.0)))
def test_clusters_are_what_comparing_every_pair_finds(texts: list[str], threshold: float) -> None:
    assert clusters(documents(texts), threshold) == brute_force(documents(texts), threshold)


@settings(max_examples=40)
@given(
    st.sampled_from((2, 256)),
    st.lists(st.tuples(TEXTS, TEXTS, st.one_of(st.just(""), TEXTS)), min_size=1, max_size=6),
    st.data(),
)
def test_answers_and_what_is_rejected_have_to_be_alike_too(
    together: int, parts: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    more = data.draw(st.lists(st.tuples(*(st.sampled_from(column) for column in zip(*parts, strict=True))), max_size=8))
    pool = [
        Document(str(n), "made", (Message("user", asked),), answer, rejected)
        for n, (asked, answer, rejected) in enumerate([*parts, *more])
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(duplicates, "_COMPARED_TOGETHER", together)
        assert clusters(pool, 0.5) == brute_force(pool, 0.5)


def test_opposite_answers_to_a_long_shared_passage_are_two_documents() -> None:
    cases = Path(__file__).parents[1] / "cases"
    for file, expected in (
        ("shared-passage.jsonl", {"yes": 0, "no": 1, "other": 2}),
        ("near-copy.jsonl", {"yes": 0, "no": 1, "other": 2, "no-again": 1}),
    ):
        pool = read_pool(Data(path=str(cases / file))).documents
        assert dict(zip((each.id for each in pool), clusters(pool, 0.8), strict=True)) == expected


def test_pairs_whose_answers_are_exchanged_are_two_documents() -> None:
    asked, long, short = (Message("user", "why ? " * 50),), "because it is so , " * 9, "it is not"
    pool = [Document("a", "made", asked, long, short), Document("b", "made", asked, short, long)]
    assert clusters(pool, 0.8) == clusters(pool, 1) == [0, 1]


def test_near_copies_in_a_script_without_spaces_are_found() -> None:
    text = "请在早上用一杯水服药。如果感到头晕，请坐下来等几分钟再开车。药剂师可以告诉你应该避免哪些食物，"
    text += "以及其他药物是否安全。"
    pool = documents(
        [text, text.replace("几分钟", "十分钟"), "怎样洗红色的外套？请用冷水手洗，然后在阴凉处晾干，不要使用热水。"]
    )
    assert clusters(pool, 0.7) == [0, 0, 1]


def test_thousands_of_answers_to_one_passage_are_not_all_compared() -> None:
    passage = " ".join(f"word{n}" for n in range(300))
    asked = (Message("user", passage),)
    pool = [Document(str(n), "made", asked, f"answer number {n} is {n * n} and no other") for n in range(600)]
    hashes = [hashed(each, 0.8) for each in pool]
    start = time.process_time()
    assert duplicates.clusters(hashes, 0.8) == list(range(600))
    assert time.process_time() - start < 10


def test_two_alike_are_found_although_a_third_shares_their_buckets() -> None:
    stem = [f"common{i}" for i in range(60)]
    third = " ".join([*stem, *(f"other{i}" for i in range(60))])
    pair = [" ".join([*stem, *(f"own{i}" for i in range(60)), tail]) for tail in ("one", "two")]
    assert clusters(documents([third, *pair]), 0.8) == [0, 1, 1]


def test_threshold_one_links_equal_texts_only() -> None:
    texts = ["a b c d e f g", "a b c d e f h", "a b c d  e f g", "A b c d e f g"]
    assert clusters(documents(texts), 1) == [0, 1, 0, 2]


@pytest.mark.parametrize("threshold", [0.8, 1])
def test_prompt_and_response_both_count(threshold: float) -> None:
    asked = (Message("user", "what is this ?"),)
    pair = [Document("a", "made", asked, "a yes"), Document("b", "made", (Message("user", "who ?"),), "a yes")]
    assert clusters(pair, threshold) == [0, 1]
    assert full_text(pair[0]) == "what is this ?\na yes"


def test_texts_of_fewer_than_five_words_and_no_texts_are_clustered() -> None:
    assert clusters([], 0.8) == []
    assert clusters(documents(["", "a b", "a b", "b a", "a b c"]), 0.8) == [0, 1, 1, 2, 3]


@pytest.mark.slow
def test_clusters_do_not_depend_on_how_much_is_hashed_and_compared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stems = [[f"{family}w{i}" for i in range(60)] for family in "abc"]
    texts = [" ".join([*stems[n % 3], f"end{n}", f"more{n % 5}"]) for n in range(24)]
    roomy = clusters(documents(texts), 0.8)
    assert len(set(roomy)) == 3
    monkeypatch.setattr(duplicates, "_HASHED_TOGETHER", 7)
    monkeypatch.setattr(duplicates, "_COMPARED_TOGETHER", 2)
    assert clusters(documents(texts), 0.8) == roomy == brute_force(documents(texts), 0.8)


def test_a_family_that_shares_buckets_without_being_alike_enough_stays_apart() -> None:
    """One template with every 14th word filled in: about 55 % of the 5-grams are shared by any two."""
    texts = [" ".join(f"fill{n}x{i}" if i % 14 == 7 else f"w{i}" for i in range(280)) for n in range(40)]
    assert clusters(documents(texts), 0.8) == list(range(40)) == brute_force(documents(texts), 0.8)
    assert set(clusters(documents(texts), 0.4)) == {0}


def test_the_rejected_answer_counts() -> None:
    pair = [
        Document("a", "made", (), "yes", "no"),
        Document("b", "made", (), "yes", "never"),
        Document("c", "m", (), "yes"),
    ]
    assert clusters(pair, 1) == clusters(pair, 0.8) == [0, 1, 2]
    assert [full_text(document) for document in pair] == ["yes\nno", "yes\nnever", "yes"]
