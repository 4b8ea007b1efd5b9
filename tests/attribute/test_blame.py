"""Blame by source and theme: against a plain loop, however the pool is ordered, copies counted once."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from datablame.attribute.blame import MOST_GROUPS, blame
from datablame.attribute.rankings import Rankings, id_order, ranked
from datablame.stats.intervals import auc_intervals, share
from datablame.tables import Blame

IDS = [f"d{number:02d}" for number in range(24)]
SOURCES = ["web", "chat", "books"]


def pool(seed: int = 0) -> Any:
    """Scores with ties and gaps, sources and clusters: 8 documents are copies, some of them of another source."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, 9, len(IDS)).astype(float)
    scores[random.choice(len(IDS), 3, replace=False)] = np.nan
    return scores, random.integers(0, 3, len(IDS)), np.concatenate([np.arange(16), np.arange(8)])


def blamed(scores: Any, labels: Any, clusters: Any, order: Any = None, k: int = 4, names: Any = SOURCES) -> list[Blame]:
    rows = np.arange(len(scores)) if order is None else order
    ids = [IDS[row] for row in rows]
    found = ranked(np.arange(len(rows)), scores[rows], id_order(ids))
    rankings: Rankings = {"m": {"x": found}}
    return blame("source", names, labels[rows], rankings, clusters[rows], k)


def plain(scores: Any, labels: Any, clusters: Any, k: int = 4) -> dict[str, tuple[float, ...]]:
    """By source: clusters, their share, AUC, clusters among the first K and lift, one comparison after another."""
    best, first_id = dict[int, float](), dict[int, str]()
    for row in range(len(scores)):
        cluster = int(clusters[row])
        if labels[row] >= 0 and not np.isnan(scores[row]) and scores[row] > best.get(cluster, -1):
            best[cluster], first_id[cluster] = scores[row], IDS[row]
    order = sorted(best, key=lambda cluster: (-best[cluster], first_id[cluster]))
    rows = dict[str, tuple[float, ...]]()
    for number, name in enumerate(SOURCES):
        own = {int(clusters[row]) for row in range(len(scores)) if labels[row] == number} & set(order)
        rest = [cluster for cluster in order if cluster not in own]
        if own and rest:
            wins = [(best[a] > best[b]) + (best[a] == best[b]) / 2 for a, b in product(own, rest)]
            hits, of_all = len(own & set(order[:k])), len(own) / len(order)
            rows[name] = (len(own), of_all, sum(wins) / len(wins), hits, hits / k / of_all)
    return rows


def numbers(row: Blame) -> tuple[float, ...]:
    return row.n, row.share, row.auc, row.first, row.lift


@pytest.mark.parametrize("seed", range(5))
def test_blame_is_what_a_plain_loop_counts(seed: int) -> None:
    scores, labels, clusters = pool(seed)
    labels[seed] = -1
    found = {row.group: numbers(row) for row in blamed(scores, labels, clusters)}
    assert found == {name: pytest.approx(each) for name, each in plain(scores, labels, clusters).items()}


def test_blame_does_not_depend_on_the_order_of_the_pool() -> None:
    scores, labels, clusters = pool()
    order = np.random.default_rng(3).permutation(len(IDS))
    assert blamed(scores, labels, clusters, order) == blamed(scores, labels, clusters)


def test_a_cluster_counts_once_however_many_copies_it_has() -> None:
    scores, labels, clusters = np.array([3.0, 2.0, 1.0]), np.array([0, 1, 2]), np.array([0, 1, 2])
    copies = [np.append(each, [each[0]] * 9) for each in (scores, labels, clusters)]
    assert blamed(copies[0], copies[1], copies[2], k=2) == blamed(scores, labels, clusters, k=2)


def test_rows_carry_both_intervals_and_a_single_source_has_none() -> None:
    scores, labels, clusters = np.array([4.0, 3.0, 2.0, 1.0]), np.array([0, 0, 1, 1]), np.arange(4)
    first, second = blamed(scores, labels, clusters, k=2)
    low, high = auc_intervals(np.array([1.0]), np.array([2.0]), np.array([2.0]))
    assert (first.group, first.auc, first.low, first.high) == ("web", 1.0, low[0], high[0])
    assert (first.lift_low, first.lift_high) == (2 * share(2, 2).low, 2 * share(2, 2).high)
    assert (second.group, second.auc, second.first, second.lift) == ("chat", 0.0, 0, 0.0)
    assert blamed(scores, np.zeros(4, dtype=int), clusters) == []
    assert blamed(np.full(4, np.nan), labels, clusters) == []


def test_one_lucky_document_does_not_lead_and_the_last_sources_are_left_out() -> None:
    n = 150
    ids = [f"d{number:03d}" for number in range(300)]
    labels = np.concatenate([np.arange(1, n + 1), np.zeros(300 - n, dtype=int)])
    scores = np.concatenate([[500.0], np.arange(n - 1), 100 + np.arange(300.0 - n)])
    rankings = {"m": {"x": ranked(np.arange(300), scores, id_order(ids))}}
    rows = blame("source", [f"s{number:03d}" for number in range(n + 1)], labels, rankings, np.arange(300), 20)
    assert [row.group for row in rows[:2]] == ["s000", "s001"]
    assert rows[1].auc == 1.0
    assert len(rows) == MOST_GROUPS


def test_the_interval_of_an_auc_holds_it_as_often_as_it_says() -> None:
    """Exponential scores of 12 documents against 150: P(x > y) = r / (1 + r) where their means are r : 1."""
    random, held = np.random.default_rng(11), 0
    for ratio in (1.0, 3.0):
        own, rest = random.exponential(ratio, (400, 12)), random.exponential(1.0, (400, 150))
        aucs = (own[:, :, None] > rest[:, None]).mean((1, 2))
        low, high = auc_intervals(aucs, np.full(400, 12.0), np.full(400, 150.0))
        held += int(((low <= ratio / (1 + ratio)) & (ratio / (1 + ratio) <= high)).sum())
    assert 0.93 < held / 800 < 0.98


@pytest.mark.parametrize(("auc", "n"), [(1.1, 3.0), (0.5, 0.0)])
def test_an_auc_that_is_none_is_refused(auc: float, n: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1, or"):
        auc_intervals(np.array([auc]), np.array([n]), np.array([5.0]))


def test_of_one_document_hardly_anything_is_known() -> None:
    low, high = auc_intervals(np.array([1.0, 0.0]), np.ones(2), np.full(2, 999.0))
    assert (low[0] < 0.5, high[0], low[1], high[1] > 0.5) == (True, 1.0, 0.0, True)
