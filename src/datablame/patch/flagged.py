"""Which documents arms act on, from what attribution left: a method's first clusters, its last ones, what is known."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from datablame.attribute.flags import flagged
from datablame.engine.run_folder import Inputs, read_jsonl
from datablame.study.checks import CONTROLS
from datablame.study.schema import Study

Ranking = Mapping[str, Sequence[str]]
"""A method's documents for each behaviour, the most responsible first."""
Flags = Mapping[tuple[str, int], Sequence[str]]
"""Documents by method and K; those of `oracle`, which are the same at every K, by K = 0."""


def read_clusters(inputs: Inputs) -> dict[str, int]:
    """The duplicate cluster of every document that attribution ranked."""
    rows = read_jsonl(inputs.artifact("attribute", "clusters.jsonl"))
    return {row["doc_id"]: row["cluster"] for row in rows}


def read_rankings(study: Study, inputs: Inputs) -> dict[str, Ranking]:
    """The ranking of every method of the study, empty where it has no scores."""
    found: dict[str, Ranking] = {}
    for method in study.attribute.methods:
        path = inputs.artifact("attribute", f"scores/{method}.jsonl")
        ranked: dict[str, list[str]] = {}
        for row in sorted(read_jsonl(path) if path.exists() else [], key=lambda row: row["rank"]):
            ranked.setdefault(row["behaviour"], []).append(row["doc_id"])
        found[method] = ranked
    return found


def flags_of(study: Study, rankings: Mapping[str, Ranking], cluster_of: Mapping[str, int]) -> Flags:
    """What every method flags at every K, with or without an arm, and what was planted where an arm removes it."""
    found = {
        (method, k): first_clusters(ranked, cluster_of, k)
        for method, ranked in rankings.items()
        if method not in CONTROLS
        for k in study.ks
    }
    if "oracle" in study.patch.arms and study.truth is not None:
        planted = {cluster_of.get(row["doc_id"]) for row in read_jsonl(Path(study.truth))}
        found["oracle", 0] = [doc_id for doc_id, cluster in cluster_of.items() if cluster in planted]
    return found


def first_clusters(ranked: Ranking, cluster_of: Mapping[str, int], k: int) -> list[str]:
    """The members of a method's first `k` clusters for each behaviour."""
    ids = [doc_id for behaviour in ranked for doc_id in flagged(ranked[behaviour], cluster_of, k)]
    return list(dict.fromkeys(ids))


def last_clusters(ranked: Ranking, cluster_of: Mapping[str, int], members: Collection[str], k: int) -> list[str]:
    """The members of a method's last `k` clusters for each behaviour, of those that training sees.

    A cluster ranks where its first document does. One that the method flags itself is never among its last.
    """
    first = {cluster_of[doc_id] for doc_id in first_clusters(ranked, cluster_of, k)}
    seen = {cluster_of[doc_id] for doc_id in members} - first
    last: set[int] = set()
    for ids in ranked.values():
        order = [cluster for cluster in dict.fromkeys(cluster_of[doc_id] for doc_id in ids) if cluster in seen]
        last |= set(order[-k:])
    return [doc_id for doc_id in members if cluster_of[doc_id] in last]
