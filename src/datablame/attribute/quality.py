"""Where the causes are planted: how well each method finds them, and what the prefilter loses."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datablame.attribute.agreement import Scored, averaged
from datablame.attribute.rankings import clustered
from datablame.stats.ranking import average_precision, precision_at, recall_at
from datablame.tables import Score


def quality(
    scored: Scored,
    planted: Mapping[str, Collection[str]],
    candidates: Mapping[str, Collection[str]],
    cluster_of: Mapping[str, int],
    whole: Collection[str],
    k: int,
) -> list[dict[str, Any]]:
    """Rows of every method, behaviour (and `*`, their mean) and pool, `whole` for the methods in `whole`.

    A row has `method, behaviour, pool, n, planted, base_rate, precision_at_k, recall_at_k, auprc`. All count duplicate
    clusters; n and planted those that were ranked, base_rate is their share and what chance gives as precision;
    recall refers to everything planted in the pool of documents, ranked or not.
    """
    rows = []
    for method, by_behaviour in scored.items():
        for pool in ("whole", "candidates") if method in whole else ("candidates",):
            own = [
                {
                    "method": method,
                    "behaviour": behaviour,
                    "pool": pool,
                    **_found(
                        scores,
                        _clusters(planted.get(behaviour, ()), cluster_of),
                        None if pool == "whole" else candidates[behaviour],
                        cluster_of,
                        k,
                    ),
                }
                for behaviour, scores in by_behaviour.items()
            ]
            if own:
                rows += [*own, averaged(own, {"method": method, "pool": pool})]
    return rows


def prefilter_recall(
    planted: Mapping[str, Collection[str]], candidates: Mapping[str, Collection[str]], cluster_of: Mapping[str, int]
) -> list[dict[str, Any]]:
    """For each behaviour, and `*`, the share of planted clusters with a member among the candidates."""
    rows = []
    for behaviour, ids in candidates.items():
        wanted = _clusters(planted.get(behaviour, ()), cluster_of)
        kept = wanted & _clusters(ids, cluster_of)
        rows.append({"behaviour": behaviour, "recall": len(kept) / len(wanted) if wanted else None})
    return [*rows, averaged(rows, {})] if rows else []


def ceilings(
    scored: Scored,
    candidates: Mapping[str, Collection[str]],
    cluster_of: Mapping[str, int],
    whole: Collection[str],
    k: int,
) -> list[dict[str, Any]]:
    """For each method in `whole` and behaviour, and `*`: the share of its first K clusters that the prefilter keeps."""
    rows = []
    for method in (name for name in scored if name in whole):
        own = []
        for behaviour, scores in scored[method].items():
            first = clustered(scores, cluster_of).clusters[:k]
            kept = set(first) & _clusters(candidates[behaviour], cluster_of)
            own.append({"method": method, "behaviour": behaviour, "ceiling": len(kept) / len(first) if first else None})
        if own:
            rows += [*own, averaged(own, {"method": method})]
    return rows


def _found(
    scores: Sequence[Score],
    planted: Collection[int],
    among: Collection[str] | None,
    cluster_of: Mapping[str, int],
    k: int,
) -> dict[str, Any]:
    clusters, best = clustered(scores, cluster_of, among)
    relevant = [cluster in planted for cluster in clusters]
    n, hits = len(clusters), sum(relevant)
    numbers = {
        "base_rate": hits / n if n else math.nan,
        "precision_at_k": precision_at(clusters, planted, min(k, n)) if n else math.nan,
        "recall_at_k": recall_at(clusters, planted, k),
        "auprc": average_precision(relevant, best),
    }
    return {"n": n, "planted": hits, **{name: None if math.isnan(v) else v for name, v in numbers.items()}}


def _clusters(ids: Collection[str], cluster_of: Mapping[str, int]) -> set[int]:
    return {cluster_of[doc_id] for doc_id in ids if doc_id in cluster_of}
