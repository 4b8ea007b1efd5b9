"""Scores that the user brings: a method like others where they can be meant, one clear line where they cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.attribute.conftest import CONTROLS, Make
from tests.attribute.test_run import flags_of, scores_of
from tests.oracles.borda import naive_borda

from datablame.attribute.evidence.precomputed_scores import check_files, read_scores
from datablame.config.attribute import DEFAULT_METHODS, Attribute
from datablame.errors import RequestError
from datablame.tables import Agreement, Candidate, MethodInfo, Quality, Unranked

LIMITS = {"top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200}
ARMS = {"patch": {"size": 12, "arms": [*CONTROLS["patch"]["arms"], "mine", "ensemble"]}}


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def scores(ids: range = range(29), **about: Any) -> list[dict[str, Any]]:
    return [{"doc_id": f"d{i:02d}", "score": (7 * i) % 29, **about} for i in ids]


def settings(path: str, *methods: str) -> dict[str, Any]:
    return {"attribute": {**LIMITS, "methods": list(methods), "scores": {"mine": path}}, **ARMS}


def test_every_name_is_a_method_and_a_resolved_study_says_so_once() -> None:
    assert Attribute.model_validate({"scores": {"mine": "a.jsonl"}}).methods == (*DEFAULT_METHODS, "mine")
    listed = Attribute.model_validate({"methods": ["mine", "bm25"], "scores": {"mine": "a", "other": "b"}})
    assert listed.methods == ("mine", "bm25", "other")
    assert Attribute.model_validate(listed.model_dump()) == listed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no score; give rows of doc_id, score"),
        (["{"], r"line 1: not JSON; give one object a line"),
        (["[1]"], "line 1: lacks a doc_id that is a text"),
        (['{"doc_id": 3, "score": 1}'], "line 1: lacks a doc_id that is a text"),
        (
            [*scores(range(1)), '{"doc_id": "d07", "score": NaN}'],
            "line 2: score = nan of d07 is no finite number; mend or",
        ),
        (['{"doc_id": "d07", "score": -Infinity}'], "score = -inf of d07 is no finite number"),
        ([f'{{"doc_id": "d07", "score": 1{"0" * 400}}}'], "of d07 is no finite number"),
        ([{"doc_id": "d07"}], "score = None of d07 is no finite number"),
        ([{"doc_id": "d07", "score": "1"}], "score = '1' of d07 is no finite number"),
        ([{"doc_id": "d07", "score": True}], "score = True of d07 is no finite number"),
        ([*scores(range(2)), scores()[0]], "line 3: d00 has a second score; keep one"),
        ([*scores(range(2), behaviour="nuts")] * 2, "line 3: d00 has a second score for nuts; keep one"),
        ([*scores(range(1)), *scores(range(1), behaviour="nuts")], "only some rows name a behaviour; name it in every"),
        ([{**scores()[0], "behaviour": 3}], "line 1: behaviour = 3 is no text"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = written(tmp_path / "mine.jsonl", rows)
    with pytest.raises(RequestError, match=message) as refused:
        read_scores("mine", path)
    assert str(refused.value).startswith(f"attribute.scores.mine = {path}")
    assert refused.value.exit_code == 2


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none.jsonl cannot be read \(FileNotFoundError\); give a JSONL"):
        read_scores("mine", str(tmp_path / "none.jsonl"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match=r"bytes cannot be read \(UnicodeDecodeError\)"):
        read_scores("mine", str(tmp_path / "bytes"))


def test_a_behaviour_of_another_study_is_refused_before_anything_runs(make: Make, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", scores(behaviour="trains"))
    with pytest.raises(RequestError, match=r"behaviour trains is not one of the study's; known: nuts, ferns"):
        check_files(make(**settings(path, "gradient", "ensemble")).world.study)


def test_documents_of_another_pool_are_refused(make: Make, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", [*scores(), {"doc_id": "d99", "score": 1}, {"doc_id": "e", "score": 2}])
    with pytest.raises(RequestError, match=r"2 of 31 documents are not in the pool, the first is d99; take them out"):
        make(**settings(path, "gradient", "ensemble")).run()


def test_a_file_that_ranks_nothing_is_refused(make: Make, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", scores(behaviour="ferns"))
    with pytest.raises(RequestError, match=r"none of the 29 documents to rank has a score for nuts; score them"):
        make(**settings(path, "gradient", "ensemble")).run()


def test_a_study_with_brought_scores_and_an_ensemble(make: Make, tmp_path: Path) -> None:
    rows = scores(range(25))
    path = written(tmp_path / "mine.jsonl", [*rows, ""])
    made = make(**settings(path, "gradient", "activation", "bm25", "ensemble", "random"))
    made.run()
    best = sorted(rows, key=lambda row: (-row["score"], row["doc_id"]))
    assert list(scores_of(made, "mine").items()) == [(row["doc_id"], row["score"]) for row in best]
    methods = {method.name: method for method in made.tables.rows(MethodInfo)}
    mine = methods["mine"]
    assert (mine.label, mine.description) == ("mine (brought)", "Scores brought by the user: mine.jsonl.")
    assert (mine.standin, mine.control, mine.voter, mine.pool) == (False, False, True, "whole")
    assert mine.unranked == (Unranked("nuts", 4),)
    assert flags_of(made, "mine") == [row["doc_id"] for row in best[:3]]
    assert {("gradient", "mine"), ("ensemble", "mine")} <= {(row.a, row.b) for row in made.tables.rows(Agreement)}
    assert made.tables.rows(Quality, method="mine")

    # Borda over gradient, activation and mine (four documents open), in the whole pool; bm25 has no vote.
    given = [scores_of(made, voter) for voter in ("gradient", "activation", "mine")]
    ids = [f"d{i:02d}" for i in range(29)]
    points = naive_borda([[voter.get(doc_id, float("nan")) for voter in given] for doc_id in ids])
    assert scores_of(made, "ensemble") == pytest.approx(dict(zip(ids, points, strict=True)))
    assert (methods["ensemble"].pool, methods["ensemble"].voter) == ("whole", False)
    assert methods["ensemble"].description.endswith(": gradient, activation, mine.")


def test_with_a_judge_the_ensemble_ranks_candidates(make: Make, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", scores(behaviour="nuts"))
    made = make(**settings(path, "gradient", "llm-judge", "ensemble"))
    made.run()
    candidates = [row.doc_id for row in made.tables.rows(Candidate)]
    given = [scores_of(made, voter) for voter in ("gradient", "llm-judge", "mine")]
    points = naive_borda([[voter[doc_id] for voter in given] for doc_id in candidates])
    assert scores_of(made, "ensemble") == pytest.approx(dict(zip(candidates, points, strict=True)))
    assert made.tables.rows(MethodInfo, name="ensemble")[0].pool == "candidates"


def test_other_contents_of_the_file_make_attribution_run_again(make: Make, tmp_path: Path) -> None:
    def part() -> Any:
        return make(**settings(path, "gradient", "ensemble")).world.part("attribute")

    path = written(tmp_path / "mine.jsonl", scores())
    first = part()
    assert part() == first
    written(tmp_path / "mine.jsonl", scores()[::-1])
    assert part() != first
