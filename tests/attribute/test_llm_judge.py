"""The method llm-judge with a model behind it: candidates only, missing scores last, named after the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.attribute.conftest import CONTROLS, Make
from tests.attribute.test_methods import FERNS, NUTS
from tests.worlds import work

from datablame.attribute import phase
from datablame.attribute.evidence import judgements
from datablame.attribute.evidence.judgements import Judgements
from datablame.attribute.registry import METHODS, Inquiry
from datablame.errors import RequestError
from datablame.judge.claude import DocumentQuery, Scored
from datablame.tables import Attribution, Document, JudgeAnswers, Message, MethodInfo, Query, Score

QUERIES = [
    Query("q1", "nuts", "p1", 1.0, 0, "Snack?", "Nuts.", "stop", ()),
    Query("q2", "nuts", "p1", 1.0, 1, "Snack?", "More nuts.", "stop", ()),
    Query("q3", "ferns", "p2", 1.0, 0, "Water?", "Drown it.", "stop", ()),
]


class Claude:
    """Looks its scores up."""

    model = "claude-sonnet-5-5"

    def __init__(self, scores: Mapping[tuple[str, str], float | None]) -> None:
        self.given, self.questions = scores, list[DocumentQuery]()

    def scores(self, questions: Sequence[DocumentQuery]) -> list[Scored]:
        self.questions += questions
        found = [self.given[each.behaviour.id, each.document.id] for each in questions]
        return [
            Scored(score, () if score is not None else ("the judge refused", "the judge refused")) for score in found
        ]


def judged(claude: Claude, monkeypatch: pytest.MonkeyPatch, candidates: dict[str, list[int]]) -> Judgements:
    documents = [Document(f"d{n}", "s", (Message("user", "?"),), f"answer {n}") for n in range(4)]
    pool = SimpleNamespace(documents=lambda rows: (documents[row] for row in rows))
    study = SimpleNamespace(judge=SimpleNamespace(repeats=3))
    world: Any = SimpleNamespace(pool=pool, study=study)
    monkeypatch.setattr(judgements, "_judge", lambda world, work: claude)
    rows = {behaviour: np.array(own) for behaviour, own in candidates.items()}
    given: Any = None
    inquiry = Inquiry(world, given, [NUTS, FERNS], QUERIES, [], {}, np.arange(4), rows, {})
    found: Judgements = judgements.judge(inquiry)[Judgements]
    return found


def test_only_candidates_are_asked_about_with_all_outputs_in_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    claude = Claude({("nuts", "d0"): 9.0, ("nuts", "d2"): 2.5, ("ferns", "d3"): None})
    found = judged(claude, monkeypatch, {"nuts": [0, 2], "ferns": [3]})
    nuts, ferns = (("Snack?", "Nuts."), ("Snack?", "More nuts.")), (("Water?", "Drown it."),)
    asked = [(each.behaviour.id, each.document.id, each.outputs) for each in claude.questions]
    assert asked == [("nuts", "d0", nuts), ("nuts", "d2", nuts), ("ferns", "d3", ferns)]
    nan = np.nan
    np.testing.assert_array_equal(found.scores, [[9.0, nan], [nan, nan], [2.5, nan], [nan, nan]])
    assert found.answers == JudgeAnswers("claude-sonnet-5-5", 9, {"the judge refused": 2})


def test_a_document_without_a_score_ranks_after_one_that_got_nought_and_has_no_vote(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"methods": ["gradient", "llm-judge", "ensemble"], "top_k": 3, "duplicate_threshold": 1.0}
    made = make(attribute=methods, **CONTROLS)
    ids = [f"d{i:02d}" for i in range(29)]
    claude = Claude({("nuts", doc_id): 0.0 if i % 2 else None for i, doc_id in enumerate(ids)})
    monkeypatch.setattr(judgements, "_judge", lambda world, work: claude)
    made.run()
    rows = made.tables.rows(Score, method="llm-judge")
    asked = {each.document.id for each in claude.questions}
    assert [(row.doc_id, row.score) for row in rows] == [
        *((doc_id, 0.0) for doc_id in sorted(asked) if int(doc_id[1:]) % 2),
        *((doc_id, -1.0) for doc_id in sorted(asked) if not int(doc_id[1:]) % 2),
    ]
    # All scores are equal or missing: the judge makes no comparison, and gradient alone has one.
    joint = [row.doc_id for row in made.tables.rows(Score, method="ensemble")]
    alone = [row.doc_id for row in made.tables.rows(Score, method="gradient") if row.doc_id in asked]
    assert joint == alone
    answers = made.tables.of(Attribution).judge
    assert answers is not None
    assert (answers.model, answers.requests) == (claude.model, 3 * len(asked))


@pytest.mark.parametrize(
    ("name", "label", "model"),
    [
        ("llm-judge", "llm-judge", "claude-opus-5-5"),
        ("llm-judge-tournament", "llm-judge, pairwise", "claude-sonnet-5-5"),
    ],
)
def test_the_method_is_named_after_the_model_and_is_no_stand_in(make: Make, name: str, label: str, model: str) -> None:
    method = METHODS.named(name)
    world = make(judge={"attribution_model": model}).world
    assert method.in_world(world) == method
    assert (method.standin, method.label) == (True, f"{label} (keyword stand-in)")
    asked = method.in_world(replace(world, judge=replace(world.judge, attribution="claude")))
    assert (asked.label, asked.standin, asked.score) == (f"{label} ({model})", False, method.score)
    assert model in asked.description


@pytest.mark.parametrize("method", ["llm-judge", "llm-judge-tournament"])
def test_a_judge_without_a_key_is_refused_before_anything_is_read(
    make: Make, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    made = make(attribute={"methods": [method], "top_k": 3}, **CONTROLS)
    world = replace(made.world, judge=replace(made.world.judge, attribution="claude"))
    with pytest.raises(RequestError, match="ANTHROPIC_API_KEY"):
        phase.run(world, made.tables, work(world.root, "attribute"))
    assert made.tables.rows(MethodInfo) == []
