"""From a ranking to the documents that a method flags: whole duplicate clusters."""

from collections.abc import Mapping, Sequence


def flagged(ranked: Sequence[str], cluster_of: Mapping[str, int], k: int) -> list[str]:
    """Every member of the first `k` clusters of a ranking, clusters in its order, members sorted by id."""
    wanted: dict[int, None] = {}
    for doc_id in ranked:
        if len(wanted) == k:
            break
        wanted.setdefault(cluster_of[doc_id])
    members: dict[int, list[str]] = {cluster: [] for cluster in wanted}
    for doc_id, cluster in cluster_of.items():
        if cluster in members:
            members[cluster].append(doc_id)
    return [doc_id for cluster in wanted for doc_id in sorted(members[cluster])]
