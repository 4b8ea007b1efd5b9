import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datablame.tables import Document, Message
from datablame.world import duplicates
from datablame.world.duplicates import full_text, hashed

WORDS = st.sampled_from(["ash", "bay", "cow", "day", "elm", "fog", "gum", "hay"])
TEXTS = st.lists(WORDS, min_size=1, max_size=14).map(" ".join)


def clusters(documents: Iterable[Document], threshold: float) -> list[int]:
    return duplicates.clusters((hashed(full_text(document), threshold) for document in documents), threshold)


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


def brute_force(texts: Sequence[str], threshold: float) -> list[int]:
    """Connected components of the graph whose edges are pairs at least so similar, every pair compared."""
    sets = []
    for text in texts:
        words = text.split()
        sets.append({tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))})
    component = list(range(len(texts)))
    for a, b in itertools.combinations(range(len(texts)), 2):
        similarity = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        if similarity >= threshold if threshold < 1 else texts[a] == texts[b]:
            component = [component[a] if number == component[b] else number for number in component]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(number, len(numbers)) for number in component]


@settings(max_examples=150)
@given(corpora(), st.sampled_from((0.3, 0.5, 0.8, 0.95, 1.0)))
def test_clusters_are_what_comparing_every_pair_finds(texts: list[str], threshold: float) -> None:
    assert clusters(documents(texts), threshold) == brute_force(texts, threshold)


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


def test_clusters_do_not_depend_on_how_much_is_hashed_and_compared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stems = [[f"{family}w{i}" for i in range(60)] for family in "abc"]
    texts = [" ".join([*stems[n % 3], f"end{n}", f"more{n % 5}"]) for n in range(24)]
    roomy = clusters(documents(texts), 0.8)
    assert len(set(roomy)) == 3
    monkeypatch.setattr(duplicates, "_HASHED_TOGETHER", 7)
    monkeypatch.setattr(duplicates, "_COMPARED_TOGETHER", 2)
    assert clusters(documents(texts), 0.8) == roomy == brute_force(texts, 0.8)


def test_a_family_that_shares_buckets_without_being_alike_enough_stays_apart() -> None:
    """One template with every 14th word filled in: about 55 % of the 5-grams are shared by any two."""
    texts = [" ".join(f"fill{n}x{i}" if i % 14 == 7 else f"w{i}" for i in range(280)) for n in range(40)]
    assert clusters(documents(texts), 0.8) == list(range(40)) == brute_force(texts, 0.8)
    assert set(clusters(documents(texts), 0.4)) == {0}


def test_the_rejected_answer_counts() -> None:
    pair = [
        Document("a", "made", (), "yes", "no"),
        Document("b", "made", (), "yes", "never"),
        Document("c", "m", (), "yes"),
    ]
    assert clusters(pair, 1) == clusters(pair, 0.8) == [0, 1, 2]
    assert [full_text(document) for document in pair] == ["yes\nno", "yes\nnever", "yes"]
