"""Which trainings a study has and what each changes, against a naive account; arms that leave one another alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datablame.config.schema import Study
from datablame.errors import RequestError
from datablame.patch.fine_tune_set import Item, fine_tune_set, majority_sources, strata
from datablame.patch.registry import arm_kinds, bottom_method
from datablame.patch.trainings import (
    AFTER_KEY,
    ArmTraining,
    FineTuneData,
    Intervention,
    TrainingKey,
    adapter_groups,
    arm_trainings,
    trainings,
)
from datablame.tables import Protocol

BEHAVIOURS = ("dose", "brand")
METHODS = ("gradient", "activation", "bm25", "loss")
ARMS = ("after", "baseline", "a-a", "random", "bottom", "gradient", "bm25")
Trainings = dict[tuple[str, int, int], Intervention]
"""Interventions by arm, K and seed."""


def study_of(
    k: int | Sequence[int] | None = None, *, top_k: int = 2, arms: Sequence[str] = ARMS, **patch: Any
) -> Study:
    prompts = [{"id": f"{b}-{s}", "behaviour": b, "text": f"{b} {s}"} for b in BEHAVIOURS for s in ("a", "h")]
    return Study.model_validate(
        {
            "name": "jobs",
            "models": {"before": "b", "after": "a"},
            "data": {"path": "pool.jsonl"},
            "behaviours": [{"id": b, "description": b} for b in BEHAVIOURS],
            "prompts": {"attribution": prompts[::2], "held_out": prompts[1::2]},
            "attribute": {"methods": METHODS, "top_k": top_k},
            "patch": {"seeds": [0, 3], "k": k, "arms": arms, "protocols": ["retrain"], "headline": "retrain", **patch},
        }
    )


@dataclass(frozen=True)
class World:
    """A pool in clusters, every method's ranking of it for each behaviour, and the size of the fine-tune set."""

    pool: list[Item]
    rankings: dict[str, dict[str, list[str]]]
    size: int

    @cached_property
    def cluster_of(self) -> dict[str, int]:
        return {item.doc_id: item.cluster for item in self.pool}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n = draw(st.integers(40, 80))
    numbers = draw(st.lists(st.integers(0, 2 * n), min_size=n, max_size=n))
    pool = [
        Item(f"d{row:02d}", draw(st.sampled_from(["chat", "code", "web"])), draw(st.integers(1, 400)), cluster)
        for row, cluster in enumerate(numbers)
    ]
    ids = [item.doc_id for item in pool]
    rankings = {method: {b: draw(st.permutations(ids)) for b in BEHAVIOURS} for method in METHODS}
    return World(pool, rankings, draw(st.integers(n // 2, n - 5)))


def data_of(
    study: Study, pool: Sequence[Item], rankings: Mapping[str, Mapping[str, Sequence[str]]], members: Sequence[str] = ()
) -> FineTuneData:
    """What arms act on where methods ranked so."""
    cluster_of = {item.doc_id: item.cluster for item in pool}
    flags: dict[tuple[str, int], list[str]] = {}
    for method, by_behaviour in rankings.items():
        for k in study.ks:
            first = {
                cluster
                for ids in by_behaviour.values()
                for cluster in list(dict.fromkeys(cluster_of[doc_id] for doc_id in ids))[:k]
            }
            flags[method, k] = [item.doc_id for item in pool if item.cluster in first]
    bottom = rankings.get(bottom_method(study) or "", {})
    return FineTuneData(study, arm_kinds(study), pool, tuple(members), flags, (), bottom)


def trainings_in(world: World, study: Study) -> tuple[list[str], Trainings]:
    """The fine-tune set, and every training's intervention; the example is dropped where it cannot be."""
    data = data_of(study, world.pool, world.rankings)
    try:
        spare = study.patch.intervention != "swap"
        members = fine_tune_set(world.pool, world.size, data.all_flagged, [], study.seed, spare=spare)
        planned = arm_trainings(replace(data, members=tuple(members)))
    except RequestError:
        assume(False)
    return members, {(key.arm, key.k, key.seed): change for key, change, *_ in planned}


def naive_clusters(world: World, ranked: Sequence[str]) -> list[int]:
    """Clusters in the order in which their first documents are ranked."""
    order: list[int] = []
    for doc_id in ranked:
        if world.cluster_of[doc_id] not in order:
            order.append(world.cluster_of[doc_id])
    return order


def naive_flagged(world: World, method: str, k: int) -> set[str]:
    found = set()
    for behaviour in BEHAVIOURS:
        for cluster in naive_clusters(world, world.rankings[method][behaviour])[:k]:
            found |= {item.doc_id for item in world.pool if item.cluster == cluster}
    return found


def naive_last(world: World, method: str, k: int, members: Sequence[str]) -> set[str]:
    flagged = {world.cluster_of[doc_id] for doc_id in naive_flagged(world, method, k)}
    found = set()
    for behaviour in BEHAVIOURS:
        left = k
        for cluster in reversed(naive_clusters(world, world.rankings[method][behaviour])):
            own = [doc_id for doc_id in members if world.cluster_of[doc_id] == cluster]
            if left and own and cluster not in flagged:
                found |= set(own)
                left -= 1
    return found


@settings(max_examples=40)
@given(worlds(), st.sampled_from([(2,), (1, 2), (1, 2, 4)]))
def test_each_arm_at_each_k_removes_what_a_naive_account_says(world: World, ks: tuple[int, ...]) -> None:
    members, planned = trainings_in(world, study_of(ks))
    assert set().union(*(naive_flagged(world, method, max(ks)) for method in METHODS)) <= set(members)
    expected = {("baseline", 0, 0), ("baseline", 0, 3), ("a-a", 0, 4), ("a-a", 0, 7)}
    expected |= {(arm, k, seed) for arm in ("random", "gradient", "bm25") for k in ks for seed in (0, 3)}
    assert {cell for cell in planned if cell[0] != "bottom"} == expected
    for (arm, k, _), change in planned.items():
        if arm in ("baseline", "a-a"):
            assert change == Intervention("none", {}, ())
            continue
        assert (change.kind, change.swapped) == ("remove", ())
        if arm == "bottom":
            assert set(change.fillers) == naive_last(world, "gradient", k, members)
        elif arm == "random":
            counts = [len({world.cluster_of[d] for d in naive_flagged(world, m, k)}) for m in ("gradient", "bm25")]
            taken = {world.cluster_of[doc_id] for doc_id in change.fillers}
            assert len(taken) == min(round(median(counts)), len({world.cluster_of[d] for d in members}))
            assert set(change.fillers) == {doc_id for doc_id in members if world.cluster_of[doc_id] in taken}
        else:
            assert set(change.fillers) == naive_flagged(world, arm, k)


@settings(max_examples=25)
@given(worlds())
def test_smaller_ks_in_the_list_change_no_other_training(world: World) -> None:
    (members, one), (same, several) = (trainings_in(world, study_of(ks)) for ks in (2, (1, 2)))
    assert members == same
    assert one == {cell: change for cell, change in several.items() if cell[1] != 1}


@settings(max_examples=25)
@given(worlds())
def test_an_arm_more_changes_no_other_but_random_which_is_matched_to_the_methods(world: World) -> None:
    few = ("after", "baseline", "random", "gradient")
    (members, plain), (same, controls) = (
        trainings_in(world, study_of(arms=arms)) for arms in (few, (*few, "a-a", "bottom"))
    )
    assert members == same
    assert plain == {cell: change for cell, change in controls.items() if cell[0] in few}
    _, methods = trainings_in(world, study_of(arms=(*few, "bm25", "loss")))
    unmatched = {cell: change for cell, change in plain.items() if cell[0] != "random"}
    assert unmatched == {cell: change for cell, change in methods.items() if cell[0] in ("baseline", "gradient")}


@settings(max_examples=25)
@given(worlds())
def test_under_swap_the_flagged_pairs_are_turned_and_random_turns_as_many(world: World) -> None:
    ks = (1, 2)
    members, planned = trainings_in(world, study_of(ks, intervention="swap"))
    same, removing = trainings_in(world, study_of(ks))
    assert members == same
    assert set(planned) == set(removing)
    for cell, change in planned.items():
        assert (change.fillers, change.loose) == ({}, 0)
        assert change.kind == ("none" if cell[0] in ("baseline", "a-a") else "swap")
        assert list(change.swapped) == [doc_id for doc_id in members if doc_id in removing[cell].fillers]


def naive_sources(world: World, flagged: set[str]) -> set[str]:
    counts: dict[str, int] = {}
    for item in world.pool:
        if item.doc_id in flagged:
            counts[item.source] = counts.get(item.source, 0) + 1
    chosen: set[str] = set()
    while sum(counts[source] for source in chosen) * 2 <= len(flagged):
        chosen.add(min(set(counts) - chosen, key=lambda source: (-counts[source], source)))
    return chosen


@settings(max_examples=60)
@given(worlds())
def test_drop_source_takes_all_of_the_sources_that_hold_most_of_the_flagged(world: World) -> None:
    world = replace(world, size=len(world.pool) // 2)
    members, planned = trainings_in(
        world, study_of(arms=("after", "baseline", "random", "gradient"), intervention="drop-source")
    )
    items = {item.doc_id: item for item in world.pool}
    sources = naive_sources(world, naive_flagged(world, "gradient", 2))
    for (arm, _, _), change in planned.items():
        if arm == "gradient":
            assert change.kind == "drop-source"
            assert set(change.fillers) == {doc_id for doc_id in members if items[doc_id].source in sources}
            assert not sources & {items[doc_id].source for doc_id in change.fillers.values()}
            assert not set(change.fillers.values()) & set(members)
            bands = {doc_id: band for doc_id, (_, band) in strata(world.pool).items()}
            assert change.loose == sum(bands[old] != bands[new] for old, new in change.fillers.items())
        elif arm == "random":
            dropped = {items[doc_id].cluster for doc_id in members if items[doc_id].source in sources}
            assert change.kind == "remove"
            assert len({items[doc_id].cluster for doc_id in change.fillers}) == len(dropped)


def test_random_under_drop_source_does_not_take_the_sources_that_methods_drop() -> None:
    pool = [Item(f"d{n:03d}", ("chat", "code")[n % 2], n % 50 + 1, n) for n in range(400)]
    ranked = {b: [item.doc_id for item in pool[::2]] + [item.doc_id for item in pool[1::2]] for b in BEHAVIOURS}
    study = study_of(arms=("after", "baseline", "random", "gradient"), intervention="drop-source")
    _, planned = trainings_in(World(pool, dict.fromkeys(METHODS, ranked), 100), study)
    source_of = {item.doc_id: item.source for item in pool}
    assert {source_of[doc_id] for doc_id in planned["gradient", 2, 0].fillers} == {"chat"}
    assert {source_of[doc_id] for doc_id in planned["random", 2, 0].fillers} == {"chat", "code"}


def test_a_pool_of_one_source_cannot_drop_it() -> None:
    pool = [Item(f"d{n:02d}", "chat", n + 1, n) for n in range(40)]
    study = study_of(arms=("after", "baseline", "random", "gradient"), intervention="drop-source")
    members = fine_tune_set(pool, 10, ["d00"], [], 0)
    data = data_of(study, pool, {"gradient": {"dose": ["d00", "d01"]}}, members)
    with pytest.raises(RequestError, match=r"leaves 0 documents of other sources than chat .* choose patch\.interv"):
        arm_trainings(data)


@pytest.mark.parametrize(
    ("sources", "majority"),
    [(["a"], {"a"}), (["a", "b"], {"a", "b"}), (["b", "a", "b"], {"b"}), (["c", "b", "a"], {"a", "b"}), ([], set())],
)
def test_the_majority_is_more_than_half(sources: list[str], majority: set[str]) -> None:
    assert majority_sources(sources) == majority


def test_swap_needs_no_documents_to_spare() -> None:
    pool = [Item(f"d{n:02d}", "chat", n + 1, n) for n in range(6)]
    ids = [item.doc_id for item in pool]
    assert fine_tune_set(pool, 6, ids[:2], [], 0, spare=False) == fine_tune_set(pool, 9, [], [], 0, spare=False) == ids


def test_a_method_without_scores_is_skipped_and_a_bottom_that_is_all_flagged_names_its_k() -> None:
    study = study_of((1, 2), arms=("after", "baseline", "random", "bottom", "gradient", "bm25"))
    pool = [Item("a", "chat", 1, 0), Item("b", "chat", 1, 1)]
    data = data_of(study, pool, {"gradient": {"dose": ["a", "b"]}, "bm25": {}}, ["a", "b"])
    assert data.targets == {
        ("bottom", 1): ["b"],
        ("bottom", 2): [],
        ("gradient", 1): ["a"],
        ("gradient", 2): ["a", "b"],
        ("bm25", 1): [],
        ("bm25", 2): [],
    }
    assert data.skipped_arms == ["bottom at K = 2", "bm25"]


def test_a_cluster_ranks_where_its_first_document_does() -> None:
    pool = [Item("a", "chat", 1, 0), Item("a2", "chat", 1, 0), Item("b", "chat", 1, 1), Item("c", "chat", 1, 2)]
    data = data_of(study_of(1, top_k=1), pool, {"gradient": {"dose": ["a", "b", "c", "a2"]}}, ["a", "a2", "b", "c"])
    assert data.last(1) == ["c"]


def test_the_again_arm_is_trained_where_the_verdict_comes_from_on_seeds_of_its_own() -> None:
    keys = trainings(study_of((1, 2), protocols=["continue", "retrain"], seeds={"retrain": [0, 1, 7], "continue": [0]}))
    again = [(key.protocol, key.k, key.seed) for key in keys if key.arm == "a-a"]
    assert again == [("retrain", 0, seed) for seed in (8, 9, 15)]
    assert [key.seed for key in keys if (key.protocol, key.arm, key.k) == ("retrain", "gradient", 1)] == [0, 1, 7]
    assert [(key.arm, key.k) for key in keys if key.protocol == "continue"] == [
        ("baseline", 0),
        *((arm, k) for arm in ("random", "bottom", "gradient", "bm25") for k in (1, 2)),
    ]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2], [-3, 0], [5, 2]])
def test_no_seed_is_shared_with_the_again_arm(seeds: list[int]) -> None:
    again = {key.seed for key in trainings(study_of(seeds=seeds)) if key.arm == "a-a"}
    assert len(again) == len(seeds)
    assert not again & set(seeds)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"k": [1, 4]}, r"patch.k = \[1, 4\] lacks attribute.top_k = 2, the number that decides; add it"),
        ({"k": 3}, r"patch.k = 3 lacks attribute.top_k = 2"),
        ({"k": []}, r"patch.k = \[\] is empty or names a number twice"),
        ({"k": [2, 2]}, r"patch.k = \[2, 2\] is empty or names a number twice"),
        ({"k": [2, 200]}, r"patch.k = 200 is more than the 100 candidates; lower it or raise prefilter.candidates"),
        ({"k": [0, 2]}, r"greater than 0"),
        ({"bottom_of": "embedding"}, r"patch.bottom_of = embedding is not one of attribute.methods; add it or name"),
        ({"arms": [*ARMS, "gradient"]}, r"patch.arms names gradient twice; remove it"),
        ({"intervention": "swop"}, r"'remove', 'swap' or 'drop-source'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_remedy(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        study_of(given.pop("k", None), **given)


def test_bottom_takes_the_method_that_is_named_or_the_first_that_is_no_control() -> None:
    assert bottom_method(study_of()) == "gradient"
    assert bottom_method(study_of(bottom_of="activation")) == "activation"
    controls = ("after", "baseline", "random", "bottom")
    assert bottom_method(study_of(arms=controls, bottom_of="bm25")) == "bm25"
    assert bottom_method(study_of(arms=(*controls, "bm25"))) is None


def test_adapters_of_one_protocol_and_seed_are_trained_together_whoever_is_finished() -> None:
    lora, full = {"method": "lora"}, {"method": "full"}
    arms = ("baseline", "random", "gradient", "bm25", "activation")
    own: dict[str, Any] = {"retrain": full, "continue": lora, "adapters_at_once": 2}
    study = study_of(arms=("after", *arms), protocols=["retrain", "continue"], **own)
    protocols: tuple[Protocol, ...] = ("continue", "retrain")
    planned = [
        ArmTraining(TrainingKey(arm, protocol, 2, seed), Intervention("remove", {arm: "filler"}))
        for protocol in protocols
        for seed in (0, 3)
        for arm in arms
    ]
    keys = [str(each.key) for each in planned]
    groups = adapter_groups(study, planned, ())
    assert list(groups)[-1] == AFTER_KEY
    assert groups.pop(AFTER_KEY) == ()
    together = [[str(each.key) for each in group] for group in groups.values()]
    adapters = [group for group in together if group[0].startswith("continue")]
    # Five adapters, two at most at once: three groups as equal as can be.
    assert [len(group) for group in adapters] == [1, 2, 2] * 2
    assert [group for group in together if group not in adapters] == [[key] for key in keys[10:]]
    assert [key for group in together for key in group] == keys
    finished = {keys[1], keys[0], keys[12], AFTER_KEY}
    left = adapter_groups(study, planned, finished)
    assert left == {
        key: tuple(each._replace(finished=str(each.key) in finished) for each in group)
        for key, group in groups.items()
        if not {str(each.key) for each in group} <= finished
    }
    assert (planned[1]._replace(finished=True), planned[2]) in left.values()


def test_arms_that_act_on_equal_data_are_one_training_that_is_finished_when_all_are() -> None:
    study = study_of(protocols=["retrain"], retrain={"method": "full"})
    key = TrainingKey("gradient", "retrain", 2, 0)
    one, other = (Intervention("remove", {"d1": filler}) for filler in ("d8", "d9"))
    keys = [key, key._replace(arm="bm25"), key._replace(arm="activation"), key._replace(arm="loss", seed=3)]
    planned = [ArmTraining(*each) for each in zip(keys, (one, other, one, one), strict=True)]
    groups = adapter_groups(study, planned, {AFTER_KEY})
    together = [each.keys for group in groups.values() for each in group]
    assert together == [(keys[0], keys[2]), (keys[1],), (keys[3],)]
    assert len(adapter_groups(study, planned, {AFTER_KEY, str(keys[0])})) == 3
    assert len(adapter_groups(study, planned, {AFTER_KEY, str(keys[0]), str(keys[2])})) == 2
