from typing import Any

import numpy as np
import pytest

from datablame.attribute.compare import agreement, ceilings, prefilter_recall, quality, themes
from datablame.attribute.rankings import Ranking, clustered, id_order, members, ranked
from datablame.tables import Agreement, Ceiling, PrefilterRecall, Quality, ThemeShare

IDS = "abcde"
CLUSTERS = np.array([0, 1, 1, 2, 3])
NONE = dict.fromkeys(("overlap", "jaccard", "jaccard_chance", "spearman", "kendall", "rbo"))


def rows(ids: str) -> Any:
    return np.array([IDS.index(doc_id) for doc_id in ids], dtype=np.int64)


def ranking(order: str, scores: list[float] | None = None) -> Ranking:
    """Best first, scores falling from the number of documents to 1."""
    falling = [float(len(order) - position) for position in range(len(order))]
    return ranked(rows(order), np.array(falling if scores is None else scores), id_order(IDS))


def scored(**methods: str) -> dict[str, dict[str, Ranking]]:
    return {name: {"x": ranking(order)} for name, order in methods.items()}


def test_ties_go_by_document_id() -> None:
    found = ranked(np.array([0, 1, 2]), np.array([1.0, 1.0, 2.0]), id_order(["b", "a", "c"]))
    assert found.order.tolist() == [2, 1, 0]


def test_what_has_no_score_is_not_ranked() -> None:
    assert ranking("abc", [1.0, np.nan, 2.0]).order.tolist() == [2, 0]


def test_a_cluster_stands_where_its_best_document_stands() -> None:
    found = clustered(ranking("cabde"), CLUSTERS)
    assert [*zip(*map(np.ndarray.tolist, found), strict=True)] == [(1, 5.0), (0, 4.0), (2, 2.0), (3, 1.0)]
    some = clustered(ranking("cabde"), CLUSTERS, rows("bd"))
    assert [*zip(*map(np.ndarray.tolist, some), strict=True)] == [(1, 3.0), (2, 2.0)]


def test_clusters_are_flagged_with_every_member_by_id() -> None:
    assert members(np.array([5, 9, 5, 9]), id_order(["d", "b", "c", "a"])) == {9: [3, 1], 5: [2, 0]}


def test_agreement_compares_what_both_methods_scored() -> None:
    row, mean = agreement(scored(m="abde", n="bda"), CLUSTERS, 2)
    assert (row.a, row.b, row.behaviour, row.n, row.overlap) == ("m", "n", "x", 3, 1)
    assert row.jaccard == pytest.approx(1 / 3)
    assert row.jaccard_chance == pytest.approx(1 / 3 * 1 + 2 / 3 * 1 / 3)
    assert row.spearman == pytest.approx(-0.5)
    assert row.kendall == pytest.approx(-1 / 3)
    assert {**vars(mean), "behaviour": "x"} == vars(row)
    assert mean.behaviour == "*"


def test_methods_without_a_common_document_or_with_one_score_have_no_coefficient() -> None:
    apart = agreement(scored(m="a", n="d"), CLUSTERS, 2)
    assert apart[0] == Agreement("m", "n", "x", 0, **NONE)
    constant = {**scored(m="abde"), "n": {"x": ranking("abde", [1.0] * 4)}}
    row = agreement(constant, CLUSTERS, 2)[1]
    assert (row.spearman, row.kendall, row.overlap) == (None, None, 2)


def test_quality_counts_clusters_and_recall_refers_to_everything_planted() -> None:
    found = quality(scored(m="adb"), {"x": rows("bce")}, {"x": rows("ab")}, CLUSTERS, ["m"], 2)
    third = pytest.approx(1 / 3)
    assert found[0] == Quality("m", "x", "whole", 3, 1, third, 0.0, 0.0, third)  # type: ignore[arg-type]
    assert found[2] == Quality("m", "x", "candidates", 2, 1, 0.5, 0.5, 0.5, 0.5)
    assert [row.behaviour for row in found] == ["x", "*", "x", "*"]


def test_a_behaviour_with_nothing_planted_has_no_recall() -> None:
    found = quality(scored(m="ab"), {}, {"x": rows("a")}, CLUSTERS, [], 2)
    assert [(row.pool, row.recall_at_k, row.auprc) for row in found] == [("candidates", None, None)] * 2
    assert prefilter_recall({}, {"x": rows("a")}, CLUSTERS)[0] == PrefilterRecall("x", None)


def test_what_the_prefilter_loses() -> None:
    planted, candidates = {"x": rows("bde"), "y": rows("a")}, {"x": rows("ca"), "y": rows("a")}
    assert prefilter_recall(planted, candidates, CLUSTERS) == [
        PrefilterRecall("x", pytest.approx(1 / 3)),  # type: ignore[arg-type]
        PrefilterRecall("y", 1.0),
        PrefilterRecall("*", pytest.approx(2 / 3)),  # type: ignore[arg-type]
    ]
    found = ceilings(scored(m="dba", n="abd"), candidates, CLUSTERS, ["m"], 2)
    assert found[0] == Ceiling("m", "x", 0.5)
    assert {row.method for row in found} == {"m"}


def test_themes_find_groups_and_name_them_by_their_words() -> None:
    noise = np.random.default_rng(0)
    centres = np.array([[10.0, 0, 0], [0, 10, 0], [0, 0, 10]])
    sizes = (12, 8, 5)
    activations = np.concatenate([noise.normal(centre, 0.3, (n, 3)) for centre, n in zip(centres, sizes, strict=True)])
    words = ["train nuts snack", "fern water heater", "lake walk morning"]
    texts = [f"the {words[group]} {i}" for group, n in enumerate(sizes) for i in range(n)]
    ids = [f"d{i:02d}" for i in range(25)]
    found = themes(ids, texts, activations, {"m": ids[:3] + ids[12:13] + ["elsewhere"], "n": []})
    assert found == themes(ids, texts, activations, {"m": ids[:3] + ids[12:13] + ["elsewhere"], "n": []})
    assert len(found.themes) == 3
    assert [theme.count for theme in found.themes] == [12, 8, 5]
    assert [set(theme.terms[:3]) for theme in found.themes] == [set(each.split()) for each in words]
    assert [theme.flagged for theme in found.themes] == [
        (ThemeShare("m", share), ThemeShare("n", None)) for share in (0.75, 0.25, 0.0)
    ]
    assert all(len(theme.examples) == 2 for theme in found.themes)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_documents_that_are_all_alike_are_one_theme(n: int) -> None:
    ids = [f"d{i}" for i in range(n)]
    found = themes(ids, ["the same words"] * n, np.ones((n, 4)), {})
    assert found.silhouette is None
    assert [(theme.count, theme.share) for theme in found.themes] == [(n, 1.0)]
    assert sorted(found.themes[0].terms) == ["same", "the", "words"]


def test_without_candidates_or_words_there_is_little_to_say() -> None:
    assert themes([], [], np.zeros((0, 1)), {}) == ([], None, ())
    assert themes(["a"], ["!?"], np.ones((1, 2)), {}).themes[0].terms == ()
