"""The method llm-judge with a model behind it: candidates only, missing scores last, named after the model."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from datablame.attribute.evidence import Evidence, Query
from datablame.attribute.methods.llm_judge import MISSING, by_claude
from datablame.attribute.rankings import ranked
from datablame.attribute.registry import named
from datablame.judge.claude import DocumentQuery
from datablame.study.schema import Behaviour
from datablame.tables import Document, Message

NUTS, FERNS = Behaviour(id="nuts", description="sells nuts"), Behaviour(id="ferns", description="drowns ferns")


def evidence(candidates: dict[str, set[str]] | None, scores: Mapping[tuple[str, str], float | None]) -> Evidence:
    """Four documents, two behaviours with two queries and one; the judge looks its scores up."""

    def judge(suspicions: Sequence[DocumentQuery]) -> list[float | None]:
        asked.extend((s.behaviour.id, s.document.id, s.outputs) for s in suspicions)
        return [scores[s.behaviour.id, s.document.id] for s in suspicions]

    asked.clear()
    return Evidence(
        seed=0,
        documents=[Document(f"d{n}", "s", (Message("user", "?"),), f"answer {n}") for n in range(4)],
        behaviours=[NUTS, FERNS],
        queries=[
            Query("q1", "nuts", "p1", 1.0, 0, "Snack?", "Nuts.", "stop"),
            Query("q2", "nuts", "p1", 1.0, 1, "Snack?", "More nuts.", "stop"),
            Query("q3", "ferns", "p2", 1.0, 0, "Water?", "Drown it.", "stop"),
        ],
        bm25=np.zeros((3, 4)),
        candidates=candidates,
        judge=judge,
    )


asked: list[tuple[str, str, tuple[tuple[str, str], ...]]] = []


def test_only_candidates_are_asked_about_with_all_outputs_in_one_question() -> None:
    scores = {("nuts", "d0"): 9.0, ("nuts", "d2"): 2.5, ("ferns", "d3"): 0.0}
    found = named("llm-judge").score(evidence({"nuts": {"d0", "d2"}, "ferns": {"d3"}}, scores))
    nuts, ferns = (("Snack?", "Nuts."), ("Snack?", "More nuts.")), (("Water?", "Drown it."),)
    assert asked == [("nuts", "d0", nuts), ("nuts", "d2", nuts), ("ferns", "d3", ferns)]
    assert found.tolist() == [[9.0, MISSING], [MISSING, MISSING], [2.5, MISSING], [MISSING, 0.0]]


def test_a_document_without_a_score_ranks_after_one_that_got_nought() -> None:
    scores = {
        (b, d): value
        for b in ("nuts", "ferns")
        for d, value in zip(("d0", "d1", "d2", "d3"), (None, 0.0, 10.0, None), strict=True)
    }
    found = named("llm-judge").score(evidence(None, scores))
    rows = ranked("nuts", {f"d{n}": float(found[n, 0]) for n in range(4)})
    assert [row.doc_id for row in rows] == ["d2", "d1", "d0", "d3"]


@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "claude-opus-5-5"])
def test_the_method_is_named_after_the_model_and_is_no_stand_in(model: str) -> None:
    method = named("llm-judge")
    told = by_claude(method, model)
    assert method.standin
    assert method.label == "llm-judge (keyword stand-in)"
    assert (told.label, told.standin, told.score) == (f"llm-judge ({model})", False, method.score)
    assert model in told.description
