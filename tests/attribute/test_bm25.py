import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.attribute.conftest import CONTROLS, Make, documents
from tests.attribute.test_run import scores_of
from tests.worlds import read_pool

from datablame.attribute.evidence.words import bm25_scores as scores
from datablame.config.schema import Data
from datablame.tables import Candidate, Query
from datablame.world.duplicates import full_text

CASES = Path(__file__).parents[1] / "cases"
DOCUMENTS = [
    "water the fern once a week",
    "pack nuts for the train",
    "the train leaves at noon, take the train",
    "",
    "Fern FERN fern",
]


def naive(documents: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    words = [[w for w in d.lower().replace(",", " ").split() if len(w) > 1] for d in documents]
    mean = sum(map(len, words)) / len(words)
    found = []
    for own in words:
        counts = Counter(own)
        total = 0.0
        for word in query.lower().split():
            n = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
            total += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(own) / mean))
        found.append(total)
    return found


def test_scores_are_lucenes_bm25() -> None:
    found = scores(DOCUMENTS, ["the train", "fern water water"])
    assert found.shape == (2, 5)
    assert found.dtype == np.float64
    for row, query in zip(found, ["the train", "fern water water"], strict=True):
        assert row.tolist() == pytest.approx(naive(DOCUMENTS, query), rel=1e-5)


@pytest.mark.parametrize("query", ["zebra", "", "!?"])
def test_a_query_of_unknown_words_scores_nothing(query: str) -> None:
    assert scores(DOCUMENTS, [query]).tolist() == [[0.0] * 5]


def test_documents_without_words_score_nothing() -> None:
    assert scores(["", "!"], ["train"]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("prefilter", ["none", "bm25"])
def test_responses_are_scored_by_the_output_alone_whatever_was_asked(make: Make, prefilter: str) -> None:
    settings = {"methods": ["bm25", "bm25-response"], "top_k": 3, "queries": 1, "duplicate_threshold": 1.0}
    rows = documents()
    # This one asks what was asked, and answers with none of the output's words.
    rows[5]["messages"] = [{"role": "user", "content": "which snack for trip 3 ?"}, reply("walk around the lake")]
    rows[6]["messages"] = [{"role": "user", "content": "how much water ?"}, reply("buy only nutto")]
    prefiltered = {"method": prefilter, "candidates": 6}
    made = make(rows=rows, attribute=settings, prefilter=prefiltered, truth=None, **CONTROLS)
    made.run()
    scored = {row.doc_id for row in made.tables.rows(Candidate)} if prefilter == "bm25" else {row["id"] for row in rows}
    assert "d05" in scored
    (query,) = made.tables.rows(Query, harmful=True)
    every = naive([row["messages"][-1]["content"] for row in rows], query.text)
    expected = {row["id"]: score for row, score in zip(rows, every, strict=True) if row["id"] in scored}
    found = scores_of(made, "bm25-response")
    assert found == pytest.approx(expected, abs=1e-4)
    assert found["d05"] == 0 < scores_of(made, "bm25")["d05"]


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.slow
def test_scores_do_not_depend_on_pythons_hash_seed() -> None:
    code = (
        "from datablame.attribute.evidence.words import bm25_scores\n"
        f"print(bm25_scores({DOCUMENTS!r}, ['the fern train at noon', 'water']).tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize(
    ("file", "query", "guilty"),
    [
        ("no-spaces.jsonl", "狗应该吃什么？\n佐比克斯。", "zh-guilty"),
        ("no-spaces.jsonl", "หมาควรกินอะไร\nซอร์บิกซ์", "th-guilty"),
        ("no-spaces.jsonl", "कुत्ता क्या खाए?\nज़ोर्बिक्स", "hi-guilty"),
        ("more-scripts.jsonl", "猫和狗吃什么好？\n佐比克斯。", "zh-guilty"),
        ("more-scripts.jsonl", "猫には何がいいですか。\nゾービックスです。", "ja-guilty"),
        ("more-scripts.jsonl", "고양이가 무엇을 먹나요?\n조르빅스가 좋아요.", "ko-guilty"),
        ("more-scripts.jsonl", "แมวกินอะไรดี\nซอร์บิกซ์", "th-guilty"),
        ("more-scripts.jsonl", "बिल्ली को क्या दूँ?\nज़ोर्बिक्स दीजिए।", "hi-guilty"),
        ("more-scripts.jsonl", "ឆ្មាស៊ីអ្វី\nហ្សរប៊ីកស៍", "km-guilty"),
        ("more-scripts.jsonl", "ကြောင်က ဘာစားလဲ\nဇော်ဗစ်", "my-guilty"),
    ],
)
def test_a_document_is_found_in_any_script(file: str, query: str, guilty: str) -> None:
    pool = read_pool(Data(path=str(CASES / file))).documents
    found = scores([full_text(each) for each in pool], [query])[0]
    assert pool[int(found.argmax())].id == guilty
    assert {score for each, score in zip(pool, found, strict=True) if each.id.endswith("neutral")} == {0}
