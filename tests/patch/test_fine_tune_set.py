from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datablame.errors import RequestError
from datablame.patch.fine_tune_set import Item, draw_random, fine_tune_set, replaced, strata


class World(NamedTuple):
    """A pool, what two methods flag (whole clusters), candidates, and a fine-tune set's size."""

    pool: list[Item]
    flagged_by: dict[str, list[str]]
    candidates: list[str]
    size: int


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n = draw(st.integers(12, 60))
    pool = [
        Item(f"d{row:02d}", draw(st.sampled_from(["chat", "code"])), draw(st.integers(1, 400)), cluster)
        for row, cluster in enumerate(draw(st.lists(st.integers(0, n), min_size=n, max_size=n)))
    ]
    clusters = sorted({item.cluster for item in pool})
    flagged_by = {}
    for method in ("bm25", "gradient"):
        chosen = set(draw(st.lists(st.sampled_from(clusters), max_size=3)))
        flagged_by[method] = [item.doc_id for item in pool if item.cluster in chosen]
    candidates = draw(st.lists(st.sampled_from([item.doc_id for item in pool]), max_size=8))
    flagged = {doc_id for ids in flagged_by.values() for doc_id in ids}
    return World(pool, flagged_by, candidates, draw(st.integers(max(1, len(flagged)), n - 1)))


def all_flagged(world: World) -> list[str]:
    return [doc_id for ids in world.flagged_by.values() for doc_id in ids]


def members_of(world: World, seed: int = 0) -> list[str]:
    return fine_tune_set(world.pool, world.size, all_flagged(world), world.candidates, seed)


@given(worlds())
def test_the_fine_tune_set_holds_every_flagged_document_then_candidates_in_the_pools_order(world: World) -> None:
    members = members_of(world)
    assert len(members) == len(set(members)) == world.size
    assert members == [item.doc_id for item in world.pool if item.doc_id in set(members)]
    first, second = set(all_flagged(world)), set(world.candidates)
    assert first <= set(members)
    assert second <= set(members) or set(members) <= first | second


@given(worlds(), st.sampled_from(["bm25", "gradient"]))
def test_fillers_are_strangers_one_for_each_removed_document(world: World, method: str) -> None:
    members, removed = members_of(world), world.flagged_by[method]
    cluster_of = {item.doc_id: item.cluster for item in world.pool}
    barred = {cluster_of[doc_id] for doc_id in all_flagged(world)}
    free = [item for item in world.pool if item.doc_id not in members and item.cluster not in barred]
    if len(free) < len(removed):
        with pytest.raises(RequestError, match=f"patch.size = {world.size} leaves {len(free)} documents"):
            replaced(world.pool, members, all_flagged(world), removed, 0)
        return
    fillers, loose = replaced(world.pool, members, all_flagged(world), removed, 0)
    assert set(fillers) == set(removed)
    assert len(set(fillers.values())) == len(fillers)
    assert set(fillers.values()) <= {item.doc_id for item in free}
    stratum_of = strata(world.pool)
    assert loose == sum(stratum_of[old] != stratum_of[new] for old, new in fillers.items())
    needed, available = Counter(stratum_of[d] for d in removed), Counter(stratum_of[item.doc_id] for item in free)
    if all(available[stratum] >= count for stratum, count in needed.items()):
        assert loose == 0


@given(worlds())
def test_the_random_arm_removes_whole_clusters_as_many_as_methods_flag(world: World) -> None:
    members = members_of(world)
    removed = draw_random(world.pool, members, world.flagged_by, 0, 0)
    cluster_of = {item.doc_id: item.cluster for item in world.pool}
    chosen = {cluster_of[doc_id] for doc_id in removed}
    assert removed == [doc_id for doc_id in members if cluster_of[doc_id] in chosen]
    counts = [len({cluster_of[d] for d in ids}) for ids in world.flagged_by.values() if ids]
    if counts:
        assert len(chosen) in range(min(counts), max(counts) + 1)
    else:
        assert removed == []
    assert removed == draw_random(world.pool, members, world.flagged_by, 0, 0)


def pool_of(n: int, characters: int = 50) -> list[Item]:
    return [Item(f"d{row:03d}", "chat", characters + row, row) for row in range(n)]


def test_the_random_arm_matches_the_flagged_in_source_and_length() -> None:
    pool = [Item(f"d{row:03d}", ("chat", "code")[row % 2], row, row) for row in range(200)]
    members = [item.doc_id for item in pool]
    flagged = {"gradient": [f"d{row:03d}" for row in range(1, 21, 2)]}
    removed = draw_random(pool, members, flagged, 0, 0)
    stratum_of = strata(pool)
    assert Counter(stratum_of[doc_id] for doc_id in removed) == {("code", 0): 10}


def test_the_random_arm_is_drawn_anew_for_each_training_seed() -> None:
    pool = pool_of(200)
    members = [item.doc_id for item in pool]
    flagged = {"gradient": members[:20]}
    draws = {tuple(draw_random(pool, members, flagged, 0, arm_seed)) for arm_seed in range(5)}
    assert len(draws) == 5


def test_arms_that_remove_the_same_document_get_the_same_filler_where_they_can() -> None:
    pool = pool_of(100)
    members, flagged = [item.doc_id for item in pool[:50]], [item.doc_id for item in pool[:10]]
    one, _ = replaced(pool, members, flagged, flagged, 0)
    assert one == replaced(pool, members, flagged, flagged[::-1], 0)[0]
    assert one != replaced(pool, members, flagged, flagged, 1)[0]


def test_a_duplicate_of_a_removed_document_is_no_filler() -> None:
    pool = [Item("a", "chat", 10, 0), Item("copy", "chat", 10, 0), Item("b", "chat", 10, 1), Item("c", "chat", 900, 2)]
    assert replaced(pool, ["a", "b"], [], ["a"], 0) == ({"a": "c"}, 1)


def test_removing_nothing_replaces_nothing() -> None:
    assert replaced(pool_of(5), ["d000", "d001"], ["d000"], [], 0) == ({}, 0)
    assert draw_random(pool_of(5), ["d000", "d001"], {"bm25": []}, 0, 0) == []
    assert strata([]) == {}


def test_more_flagged_documents_than_the_set_holds_are_refused() -> None:
    flagged = [f"d{row:03d}" for row in range(6)]
    with pytest.raises(RequestError, match=r"patch\.size = 5 is less than the 6 flagged documents; raise it"):
        fine_tune_set(pool_of(20), 5, flagged, [], 0)


def test_a_set_as_large_as_the_pool_is_refused() -> None:
    with pytest.raises(RequestError, match=r"patch\.size = 20 leaves no fillers in a pool of 20 documents; lower it"):
        fine_tune_set(pool_of(20), 20, ["d000"], [], 0)
