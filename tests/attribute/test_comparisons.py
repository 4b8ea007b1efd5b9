import numpy as np
import pytest

from datablame.attribute.agreement import agreement
from datablame.attribute.flags import flagged
from datablame.attribute.quality import ceilings, prefilter_recall, quality
from datablame.attribute.rankings import clustered, ranked
from datablame.attribute.themes import themes
from datablame.tables import Score

CLUSTERS = {"a": 0, "b": 1, "c": 1, "d": 2, "e": 3}


def scored(**methods: str) -> dict[str, dict[str, list[Score]]]:
    """Rankings of behaviour x, best first, scores falling from the number of documents to 1."""
    return {
        name: {"x": ranked("x", {doc_id: float(len(order) - place) for place, doc_id in enumerate(order)})}
        for name, order in methods.items()
    }


def test_ties_go_by_document_id() -> None:
    rows = ranked("x", {"b": 1.0, "a": 1.0, "c": 2.0})
    assert [(row.doc_id, row.rank) for row in rows] == [("c", 1), ("a", 2), ("b", 3)]


def test_a_cluster_stands_where_its_best_document_stands() -> None:
    rows = scored(m="cabde")["m"]["x"]
    assert clustered(rows, CLUSTERS) == ([1, 0, 2, 3], [5.0, 4.0, 2.0, 1.0])
    assert clustered(rows, CLUSTERS, {"b", "d"}) == ([1, 2], [3.0, 2.0])


def test_k_clusters_are_flagged_with_every_member() -> None:
    assert flagged(["c", "a", "b"], CLUSTERS, 2) == ["b", "c", "a"]
    assert flagged(["a"], CLUSTERS, 3) == ["a"]
    assert flagged([], CLUSTERS, 3) == []


def test_agreement_compares_what_both_methods_scored() -> None:
    rows = agreement(scored(m="abde", n="bda"), CLUSTERS, 2)
    assert [row["behaviour"] for row in rows] == ["x", "*"]
    row = rows[0]
    assert (row["a"], row["b"], row["n"], row["overlap"]) == ("m", "n", 3, 1)
    assert row["jaccard"] == pytest.approx(1 / 3)
    assert row["jaccard_chance"] == pytest.approx(1 / 3 * 1 + 2 / 3 * 1 / 3)
    assert row["spearman"] == pytest.approx(-0.5)
    assert row["kendall"] == pytest.approx(-1 / 3)
    assert {key: value for key, value in rows[1].items() if key != "behaviour"} == {
        key: value for key, value in row.items() if key != "behaviour"
    }


def test_methods_without_a_common_document_or_with_one_score_have_no_coefficient() -> None:
    apart = agreement(scored(m="a", n="d"), CLUSTERS, 2)
    assert apart[0] == {
        **{"a": "m", "b": "n", "behaviour": "x", "n": 0},
        **dict.fromkeys(("overlap", "jaccard", "jaccard_chance", "spearman", "kendall", "rbo")),
    }
    constant = {**scored(m="abde"), "n": {"x": ranked("x", dict.fromkeys("abde", 1.0))}}
    row = agreement(constant, CLUSTERS, 2)[1]
    assert (row["spearman"], row["kendall"], row["overlap"]) == (None, None, 2)


def test_quality_counts_clusters_and_recall_refers_to_everything_planted() -> None:
    rows = quality(scored(m="adb"), {"x": {"b", "c", "e"}}, {"x": {"a", "b"}}, CLUSTERS, ["m"], 2)
    whole, candidates = rows[0], rows[2]
    assert whole == {
        **{"method": "m", "behaviour": "x", "pool": "whole", "n": 3, "planted": 1},
        **{"base_rate": pytest.approx(1 / 3), "precision_at_k": 0.0, "recall_at_k": 0.0, "auprc": pytest.approx(1 / 3)},
    }
    assert candidates == {
        **{"method": "m", "behaviour": "x", "pool": "candidates", "n": 2, "planted": 1},
        **{"base_rate": 0.5, "precision_at_k": 0.5, "recall_at_k": 0.5, "auprc": 0.5},
    }
    assert [row["behaviour"] for row in rows] == ["x", "*", "x", "*"]


def test_a_behaviour_with_nothing_planted_has_no_recall() -> None:
    rows = quality(scored(m="ab"), {}, {"x": {"a"}}, CLUSTERS, [], 2)
    assert [(row["pool"], row["recall_at_k"], row["auprc"]) for row in rows] == [("candidates", None, None)] * 2
    assert prefilter_recall({}, {"x": {"a"}}, CLUSTERS)[0] == {"behaviour": "x", "recall": None}


def test_what_the_prefilter_loses() -> None:
    planted, candidates = {"x": {"b", "d", "e"}, "y": {"a"}}, {"x": {"c", "a"}, "y": {"a"}}
    assert prefilter_recall(planted, candidates, CLUSTERS) == [
        {"behaviour": "x", "recall": pytest.approx(1 / 3)},
        {"behaviour": "y", "recall": 1.0},
        {"behaviour": "*", "recall": pytest.approx(2 / 3)},
    ]
    rows = ceilings(scored(m="dba", n="abd"), candidates, CLUSTERS, ["m"], 2)
    assert rows[0] == {"method": "m", "behaviour": "x", "ceiling": 0.5}
    assert {row["method"] for row in rows} == {"m"}


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
    assert found["documents"] == 25
    assert [theme["count"] for theme in found["themes"]] == [12, 8, 5]
    assert [set(theme["terms"][:3]) for theme in found["themes"]] == [set(each.split()) for each in words]
    assert [theme["flagged"] for theme in found["themes"]] == [{"m": share, "n": None} for share in (0.75, 0.25, 0.0)]
    assert all(len(theme["examples"]) == 2 for theme in found["themes"])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_documents_that_are_all_alike_are_one_theme(n: int) -> None:
    ids = [f"d{i}" for i in range(n)]
    found = themes(ids, ["the same words"] * n, np.ones((n, 4)), {})
    assert found["silhouette"] is None
    assert [(theme["count"], theme["share"]) for theme in found["themes"]] == [(n, 1.0)]
    assert sorted(found["themes"][0]["terms"]) == ["same", "the", "words"]


def test_without_candidates_or_words_there_is_little_to_say() -> None:
    assert themes([], [], np.zeros((0, 1)), {}) == {"documents": 0, "silhouette": None, "themes": []}
    assert themes(["a"], ["!?"], np.ones((1, 2)), {})["themes"][0]["terms"] == []
