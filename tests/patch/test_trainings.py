"""Which trainings a study has and what each changes, against a naive account; arms that leave one another alone."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import pytest
from datablame.patch.bench import Job
from datablame.patch.design import trained, training_seeds
from datablame.patch.flagged import first_clusters, last_clusters
from datablame.patch.jobs import Prepared, jobs_of, skipped_arms, targets_of, work_items
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datablame.errors import RequestError
from datablame.patch.arms import Item, fine_tune_set, majority_sources, strata
from datablame.patch.measure import UNTRAINED_KEY, Together
from datablame.study.schema import Study

BEHAVIOURS = ("dose", "brand")
METHODS = ("gradient", "activation", "bm25", "loss")
ARMS = ("untrained", "baseline", "a-a", "random", "bottom", "gradient", "bm25")


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


class World(NamedTuple):
    """A pool in clusters, every method's ranking of it for each behaviour, and the size of the fine-tune set."""

    pool: list[Item]
    rankings: dict[str, dict[str, list[str]]]
    size: int

    @property
    def cluster_of(self) -> dict[str, int]:
        return {item.doc_id: item.cluster for item in self.pool}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n = draw(st.integers(40, 80))
    numbers = draw(st.lists(st.integers(0, 2 * n), min_size=n, max_size=n))
    pool = [
        Item(f"d{place:02d}", draw(st.sampled_from(["chat", "code", "web"])), draw(st.integers(1, 400)), cluster)
        for place, cluster in enumerate(numbers)
    ]
    ids = [item.doc_id for item in pool]
    rankings = {method: {b: draw(st.permutations(ids)) for b in BEHAVIOURS} for method in METHODS}
    return World(pool, rankings, draw(st.integers(n // 2, n - 5)))


def flags_in(world: World, study: Study) -> dict[tuple[str, int], list[str]]:
    return {
        (method, k): first_clusters(ranked, world.cluster_of, k)
        for method, ranked in world.rankings.items()
        for k in study.ks
    }


def prepared_in(world: World, study: Study) -> tuple[list[str], dict[tuple[str, int, int], Prepared]]:
    """The fine-tune set, and every training by arm, K and seed; the example is dropped where it cannot be."""
    flags = flags_in(world, study)
    every = [doc_id for ids in flags.values() for doc_id in ids]
    try:
        spare = study.patch.intervention != "swap"
        members = fine_tune_set(world.pool, world.size, every, [], study.seed, spare=spare)
        targets = targets_of(study, world.rankings, flags, world.cluster_of, members)
        found = jobs_of(study, world.pool, members, every, targets)
    except RequestError:
        assume(False)
    return members, {(each.job.arm, each.job.k, each.job.seed): each for each in found}


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


@settings(deadline=None, derandomize=True, max_examples=40)
@given(worlds(), st.sampled_from([(2,), (1, 2), (1, 2, 4)]))
def test_each_arm_at_each_k_removes_what_a_naive_account_says(world: World, ks: tuple[int, ...]) -> None:
    study = study_of(ks)
    members, jobs = prepared_in(world, study)
    assert set().union(*(naive_flagged(world, method, max(ks)) for method in METHODS)) <= set(members)
    expected_cells = {("baseline", 0, 0), ("baseline", 0, 3), ("a-a", 0, 4), ("a-a", 0, 7)}
    expected_cells |= {(arm, k, seed) for arm in ("random", "gradient", "bm25") for k in ks for seed in (0, 3)}
    assert {cell for cell in jobs if cell[0] != "bottom"} == expected_cells
    for (arm, k, _), (job, intervention, _) in jobs.items():
        if arm in ("baseline", "a-a"):
            assert (intervention, job.fillers, job.swapped) == ("none", {}, ())
            continue
        assert (intervention, job.swapped) == ("remove", ())
        if arm == "bottom":
            assert set(job.fillers) == naive_last(world, "gradient", k, members)
        elif arm == "random":
            counts = [len({world.cluster_of[d] for d in naive_flagged(world, m, k)}) for m in ("gradient", "bm25")]
            taken = {world.cluster_of[doc_id] for doc_id in job.fillers}
            assert len(taken) == min(round(median(counts)), len({world.cluster_of[d] for d in members}))
            assert set(job.fillers) == {doc_id for doc_id in members if world.cluster_of[doc_id] in taken}
        else:
            assert set(job.fillers) == naive_flagged(world, arm, k)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(worlds())
def test_smaller_ks_in_the_list_change_no_other_training(world: World) -> None:
    (members, one), (same, several) = (prepared_in(world, study_of(ks)) for ks in (2, (1, 2)))
    assert members == same
    assert one == {cell: job for cell, job in several.items() if cell[1] != 1}


@settings(deadline=None, derandomize=True, max_examples=25)
@given(worlds())
def test_an_arm_more_changes_no_other_but_random_which_is_matched_to_the_methods(world: World) -> None:
    few = ("untrained", "baseline", "random", "gradient")
    (members, plain), (same, controls) = (
        prepared_in(world, study_of(arms=arms)) for arms in (few, (*few, "a-a", "bottom"))
    )
    assert members == same
    assert plain == {cell: job for cell, job in controls.items() if cell[0] in few}
    _, methods = prepared_in(world, study_of(arms=(*few, "bm25", "loss")))
    unmatched = {cell: job for cell, job in plain.items() if cell[0] != "random"}
    assert unmatched == {cell: job for cell, job in methods.items() if cell[0] in ("baseline", "gradient")}


@settings(deadline=None, derandomize=True, max_examples=25)
@given(worlds())
def test_under_swap_the_flagged_pairs_are_turned_and_random_turns_as_many(world: World) -> None:
    ks = (1, 2)
    members, jobs = prepared_in(world, study_of(ks, intervention="swap"))
    same, removing = prepared_in(world, study_of(ks))
    assert members == same
    assert set(jobs) == set(removing)
    for cell, (job, intervention, loose) in jobs.items():
        assert (job.fillers, loose) == ({}, 0)
        assert intervention == ("none" if cell[0] in ("baseline", "a-a") else "swap")
        assert list(job.swapped) == [doc_id for doc_id in members if doc_id in removing[cell].job.fillers]


def naive_sources(world: World, flagged: set[str]) -> set[str]:
    counts: dict[str, int] = {}
    for item in world.pool:
        if item.doc_id in flagged:
            counts[item.source] = counts.get(item.source, 0) + 1
    chosen: set[str] = set()
    while sum(counts[source] for source in chosen) * 2 <= len(flagged):
        chosen.add(min(set(counts) - chosen, key=lambda source: (-counts[source], source)))
    return chosen


@settings(deadline=None, derandomize=True, max_examples=60)
@given(worlds())
def test_drop_source_takes_all_of_the_sources_that_hold_most_of_the_flagged(world: World) -> None:
    world = world._replace(size=len(world.pool) // 2)
    members, jobs = prepared_in(
        world, study_of(arms=("untrained", "baseline", "random", "gradient"), intervention="drop-source")
    )
    items = {item.doc_id: item for item in world.pool}
    flagged = naive_flagged(world, "gradient", 2)
    sources = naive_sources(world, flagged)
    for (arm, _, _), (job, intervention, loose) in jobs.items():
        if arm == "gradient":
            assert intervention == "drop-source"
            assert set(job.fillers) == {doc_id for doc_id in members if items[doc_id].source in sources}
            assert not sources & {items[doc_id].source for doc_id in job.fillers.values()}
            assert not set(job.fillers.values()) & set(members)
            bands = {doc_id: band for doc_id, (_, band) in strata(world.pool).items()}
            assert loose == sum(bands[old] != bands[new] for old, new in job.fillers.items())
        elif arm == "random":
            dropped = {items[doc_id].cluster for doc_id in members if items[doc_id].source in sources}
            assert intervention == "remove"
            assert len({items[doc_id].cluster for doc_id in job.fillers}) == len(dropped)


def test_random_under_drop_source_does_not_take_the_sources_that_methods_drop() -> None:
    pool = [Item(f"d{n:03d}", ("chat", "code")[n % 2], n % 50 + 1, n) for n in range(400)]
    ranked = {b: [item.doc_id for item in pool[::2]] + [item.doc_id for item in pool[1::2]] for b in BEHAVIOURS}
    study = study_of(arms=("untrained", "baseline", "random", "gradient"), intervention="drop-source")
    _, jobs = prepared_in(World(pool, dict.fromkeys(METHODS, ranked), 100), study)
    source_of = {item.doc_id: item.source for item in pool}
    assert {source_of[doc_id] for doc_id in jobs["gradient", 2, 0].job.fillers} == {"chat"}
    assert {source_of[doc_id] for doc_id in jobs["random", 2, 0].job.fillers} == {"chat", "code"}


def test_a_pool_of_one_source_cannot_drop_it() -> None:
    pool = [Item(f"d{n:02d}", "chat", n + 1, n) for n in range(40)]
    study = study_of(arms=("untrained", "baseline", "random", "gradient"), intervention="drop-source")
    members = fine_tune_set(pool, 10, ["d00"], [], 0)
    targets = {("gradient", 2): ["d00", "d01"]}
    with pytest.raises(RequestError, match=r"leaves 0 documents of other sources than chat .* choose patch\.interv"):
        jobs_of(study, pool, members, ["d00"], targets)


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
    study = study_of((1, 2), arms=("untrained", "baseline", "random", "bottom", "gradient", "bm25"))
    rankings: dict[str, Mapping[str, Sequence[str]]] = {"gradient": {"dose": ["a", "b"]}, "bm25": {}}
    cluster_of = {"a": 0, "b": 1}
    flags = {(m, k): first_clusters(rankings[m], cluster_of, k) for m in rankings for k in study.ks}
    targets = targets_of(study, rankings, flags, cluster_of, ["a", "b"])
    assert targets == {
        ("bottom", 1): ["b"],
        ("bottom", 2): [],
        ("gradient", 1): ["a"],
        ("gradient", 2): ["a", "b"],
        ("bm25", 1): [],
        ("bm25", 2): [],
    }
    assert skipped_arms(study, targets) == ["bottom at K = 2", "bm25"]


def test_a_cluster_ranks_where_its_first_document_does() -> None:
    ranked = {"dose": ["a", "b", "c", "a2"]}
    cluster_of = {"a": 0, "a2": 0, "b": 1, "c": 2}
    assert last_clusters(ranked, cluster_of, ["a", "a2", "b", "c"], 1) == ["c"]


def test_the_again_arm_is_trained_where_the_verdict_comes_from_on_seeds_of_its_own() -> None:
    study = study_of((1, 2), protocols=["continue", "retrain"], seeds={"retrain": [0, 1, 7], "continue": [0]})
    assert ("a-a", 0) in trained(study, "retrain")
    assert ("a-a", 0) not in trained(study, "continue")
    assert training_seeds(study, "retrain", "a-a") == (8, 9, 15)
    assert training_seeds(study, "retrain", "gradient") == (0, 1, 7)
    assert trained(study, "continue") == [
        ("baseline", 0),
        *(("random", k) for k in (1, 2)),
        *(("bottom", k) for k in (1, 2)),
        *(("gradient", k) for k in (1, 2)),
        *(("bm25", k) for k in (1, 2)),
    ]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2], [-3, 0], [5, 2]])
def test_no_seed_is_shared_with_the_again_arm(seeds: list[int]) -> None:
    study = study_of(seeds=seeds)
    assert not set(training_seeds(study, "retrain", "a-a")) & set(seeds)


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
        (
            {"arms": ["untrained", "baseline", "random", "bottom", "bm25"]},
            r"patch.arms = bottom needs a method whose last documents it removes; add one that is no control",
        ),
        ({"arms": [*ARMS, "gradient"]}, r"patch.arms names gradient twice; remove it"),
        ({"intervention": "swop"}, r"'remove', 'swap' or 'drop-source'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_remedy(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        study_of(given.pop("k", None), **given)


def test_bottom_takes_the_method_that_is_named_or_the_first_that_is_no_control() -> None:
    assert study_of().patch.bottom_method == "gradient"
    assert study_of(bottom_of="activation").patch.bottom_method == "activation"
    alone = study_of(arms=("untrained", "baseline", "random", "bottom"), bottom_of="bm25")
    assert alone.patch.bottom_method == "bm25"


def test_adapters_of_one_protocol_and_seed_are_trained_together_whoever_is_finished() -> None:
    lora, full = {"method": "lora"}, {"method": "full"}
    arms = ("untrained", "baseline", "random", "gradient", "bm25", "activation")
    own: dict[str, Any] = {"retrain": full, "continue": lora, "adapters_at_once": 2}
    study = study_of(arms=arms, protocols=["retrain", "continue"], **own)
    jobs = [
        Job(arm, protocol, 2, seed, {})
        for protocol in ("continue", "retrain")
        for seed in (0, 3)
        for arm in ("baseline", "random", "gradient", "bm25", "activation")
    ]
    items = work_items(study, jobs, ())
    together = [[job.key for job in item.jobs] for item in items.values() if item is not None]
    adapters = [keys for keys in together if keys[0].startswith("continue")]
    # Five adapters, two at most at once: three groups as equal as can be.
    assert [len(keys) for keys in adapters] == [1, 2, 2] * 2
    assert [keys for keys in together if keys not in adapters] == [[job.key] for job in jobs[10:]]
    assert [key for keys in together for key in keys] == [job.key for job in jobs]
    assert list(items)[-1] == UNTRAINED_KEY
    finished = {jobs[1].key, jobs[0].key, jobs[12].key, UNTRAINED_KEY}
    left = work_items(study, jobs, finished)
    assert left == {
        key: item._replace(finished=frozenset(finished & {job.key for job in item.jobs}))
        for key, item in items.items()
        if item is not None and not {job.key for job in item.jobs} <= finished
    }
    assert Together((jobs[1], jobs[2]), frozenset({jobs[1].key})) in left.values()
