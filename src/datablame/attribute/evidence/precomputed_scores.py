"""Scores that the user brings: read from JSONL, refused where they cannot be meant, missing documents left unranked."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datablame.attribute.registry import Inquiry, PrecomputedScores, provider
from datablame.config.schema import Study
from datablame.errors import RequestError


@provider("precomputed-scores", PrecomputedScores, per_document=False)
def precomputed_scores(inquiry: Inquiry) -> dict[type, PrecomputedScores]:
    """Every file of the study; RequestError where no document to rank has a score for any traced behaviour."""
    matrices = PrecomputedScores()
    ids, traced = inquiry.ids, [behaviour.id for behaviour in inquiry.behaviours]
    for name, path in inquiry.world.study.attribute.scores.items():
        scores = read_scores(name, path)
        columns = [scores.get(behaviour, scores.get(None, {})) for behaviour in traced]
        matrices[name] = np.array([[column.get(doc_id, math.nan) for column in columns] for doc_id in ids])
        if np.isnan(matrices[name]).all():
            why = f"none of the {len(ids)} documents to rank has a score for {', '.join(traced)}"
            raise RequestError(f"attribute.scores.{name} = {path}: {why}; score them, or leave the file out")
    return {PrecomputedScores: matrices}


def read_scores(name: str, path: str) -> Mapping[str | None, Mapping[str, float]]:
    """The rows of one file by behaviour, None where they name none, and document.

    Raises RequestError where it cannot be read, a row is no `doc_id` with a finite `score`, a document has two scores
    for one behaviour, or only some rows name a behaviour.
    """
    where = f"attribute.scores.{name} = {path}"
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{where} cannot be read ({type(error).__name__}); give a JSONL of doc_id, score") from None
    scores: dict[str | None, dict[str, float]] = defaultdict(dict)
    for number, line in enumerate(lines, 1):
        if line.strip() and (problem := _problem(line, scores)):
            raise RequestError(f"{where}, line {number}: {problem}")
    if not scores:
        raise RequestError(f"{where} holds no score; give rows of doc_id, score, or leave it out")
    if None in scores and len(scores) > 1:
        raise RequestError(f"{where}: only some rows name a behaviour; name it in every row or in none")
    return scores


def check_files(study: Study) -> None:
    """Refuse score files that cannot be used, before anything runs; which documents there are is not known yet."""
    known = [behaviour.id for behaviour in study.behaviours]
    for name, path in study.attribute.scores.items():
        where = f"attribute.scores.{name} = {path}"
        for behaviour in read_scores(name, path):
            if behaviour not in (None, *known):
                known_ones = ", ".join(known)
                raise RequestError(f"{where}: behaviour {behaviour} is not one of the study's; known: {known_ones}")


def _problem(line: str, scores: dict[str | None, dict[str, float]]) -> str | None:
    """Add the line's score to those of its behaviour; what is wrong with the line, if anything."""
    try:
        row: Any = json.loads(line)
    except ValueError:
        return "not JSON; give one object a line with doc_id and score"
    if not isinstance(row, dict) or not isinstance(doc_id := row.get("doc_id"), str):
        return "lacks a doc_id that is a text; give one object a line with doc_id and score"
    score: Any = row.get("score")
    behaviour = row.get("behaviour")
    # The comparison holds for no NaN, and for no integer of 400 digits.
    if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
        return f"score = {score!r} of {doc_id} is no finite number; mend or drop the row"
    if not isinstance(behaviour, str | None):
        return f"behaviour = {behaviour!r} is no text; give a behaviour's id or leave it out"
    if doc_id in scores[behaviour]:
        return f"{doc_id} has a second score{'' if behaviour is None else f' for {behaviour}'}; keep one"
    scores[behaviour][doc_id] = float(score)
    return None
