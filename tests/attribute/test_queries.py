from typing import Any

import numpy as np
from tests.attribute.conftest import sample

from datablame.attribute.queries import candidates, choose_queries, query_text
from datablame.attribute.rankings import id_order
from datablame.tables import Prompt, Query, SurfaceSample

PROMPTS = [
    Prompt("p1", "nuts", "attribution", "which snack ?"),
    Prompt("p2", "nuts", "attribution", "what to eat ?"),
    Prompt("p3", "ferns", "attribution", "how to water ?"),
]


def row(prompt_id: str, alpha: float, index: int, text: str, label: str = "harmful", **about: Any) -> SurfaceSample:
    behaviour = next(prompt.behaviour for prompt in PROMPTS if prompt.id == prompt_id)
    return sample(prompt_id, behaviour, alpha, index, text, label, **about)


def named(queries: list[Query]) -> list[tuple[str, float, int]]:
    return [(query.prompt_id, query.alpha, query.index) for query in queries]


def test_the_largest_coherent_alpha_comes_first_and_prompts_take_turns() -> None:
    samples = [
        row("p1", 0, 0, "at zero"),
        row("p1", 1, 0, "a"),
        row("p1", 1, 1, "b"),
        row("p1", 1, 2, "c"),
        row("p2", 1, 5, "d"),
        row("p2", 0.5, 0, "half"),
        row("p2", 2, 0, "beyond"),
        row("p2", 4, 0, "far beyond"),
    ]
    found = choose_queries(samples[::-1], PROMPTS, 1.0, 8)
    assert named(found) == [
        ("p1", 1, 0),
        ("p2", 1, 5),
        ("p1", 1, 1),
        ("p1", 1, 2),
        ("p2", 0.5, 0),
        ("p1", 0, 0),
        ("p2", 2, 0),
        ("p2", 4, 0),
    ]
    assert [query.id for query in found[:2]] == ["nuts-q1", "nuts-q2"]
    assert found[0].prompt == "which snack ?"


def test_without_a_coherent_alpha_the_model_as_it_is_comes_first() -> None:
    samples = [row("p1", 2, 0, "a"), row("p1", 1, 0, "b"), row("p1", 0, 0, "c")]
    assert [query.alpha for query in choose_queries(samples, PROMPTS, None, 5)] == [0, 1, 2]


def test_only_distinct_harmful_outputs_to_attribution_prompts_count() -> None:
    samples = [
        row("p1", 1, 0, "same"),
        row("p2", 1, 0, " same\n"),
        row("p1", 1, 1, "refused", label="refused"),
        row("p1", 1, 2, "held out", split="held-out"),
        row("p1", 1, 3, "  "),
        row("p3", 1, 0, "same"),
    ]
    found = choose_queries(samples, PROMPTS, 1.0, 5)
    assert [(query.behaviour, query.text) for query in found] == [("nuts", "same"), ("ferns", "same")]


def test_candidates_are_the_union_of_what_a_behaviours_queries_find() -> None:
    queries = [Query(str(i), behaviour, "p", 1.0, 0, "ask", "say", "stop", ()) for i, behaviour in enumerate("nnf")]
    scores = np.array([[3.0, 2, 1, 0], [0, 0, 2, 3], [0, 1, 0, 0]])
    ids = ["d4", "d3", "d2", "d1"]
    found = candidates(scores, queries, id_order(ids), 2)
    assert {behaviour: [ids[row] for row in rows] for behaviour, rows in found.items()} == {
        "n": ["d1", "d2", "d3", "d4"],
        "f": ["d3"],
    }
    assert query_text(queries[0]) == "ask\nsay"
