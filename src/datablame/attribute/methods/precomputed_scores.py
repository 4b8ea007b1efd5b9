"""Scores that the user brings: read from JSONL, refused where they cannot be meant, missing documents left unranked."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datablame.attribute.registry import Inquiry, PrecomputedScores, provider
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.study.schema import Study
from datablame.world import World

_ANY = None
"""Stands for every behaviour, where a file names none."""

Scores = Mapping[str | None, Mapping[str, float]]
"""By behaviour and document."""


class _Row(NamedTuple):
    doc_id: str
    score: float
    behaviour: str | None


def _check_pool(world: World, work: Work) -> None:
    """Refuse score files of another pool.

    Raises:
        RequestError: a document is not in the pool.
    """
    for name, path in world.study.attribute.scores.items():
        every = dict.fromkeys(doc_id for scores in read_scores(name, path).values() for doc_id in scores)
        strangers = [doc_id for doc_id in every if doc_id not in world.pool.row_of]
        if strangers:
            raise RequestError(
                f"attribute.scores.{name} = {path}: {len(strangers)} of {len(every)} documents are not in the pool, "
                f"the first is {strangers[0]}; take them out, or score the pool that data names"
            )


@provider("precomputed-scores", PrecomputedScores, check=_check_pool, per_document=False)
def precomputed_scores(inquiry: Inquiry) -> dict[type, PrecomputedScores]:
    """Every file of the study; a document that is not in one has no score there.

    Raises:
        RequestError: none of the documents to rank has a score for any traced behaviour.
    """
    matrices = {}
    ids, traced = inquiry.ids, [behaviour.id for behaviour in inquiry.behaviours]
    for name, path in inquiry.world.study.attribute.scores.items():
        scores = read_scores(name, path)
        columns = [scores.get(behaviour, scores.get(_ANY, {})) for behaviour in traced]
        matrix = np.array([[column.get(doc_id, math.nan) for column in columns] for doc_id in ids])
        if np.isnan(matrix).all():
            raise RequestError(
                f"attribute.scores.{name} = {path}: none of the {len(ids)} documents to rank has a score for "
                f"{', '.join(traced)}; score them, or leave the file out"
            )
        matrices[name] = matrix
    return {PrecomputedScores: PrecomputedScores(matrices)}


def read_scores(name: str, path: str) -> Scores:
    """The rows of one file by behaviour and document.

    Raises:
        RequestError: it cannot be read, a row is no `doc_id` with a finite `score`, a document has two scores for one
            behaviour, or only some rows name a behaviour.
    """
    where = f"attribute.scores.{name} = {path}"
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{where} cannot be read ({type(error).__name__}); give a JSONL of doc_id, score") from None
    scores: dict[str | None, dict[str, float]] = {}
    for number, row in _rows(lines, where):
        of_behaviour = scores.setdefault(row.behaviour, {})
        if row.doc_id in of_behaviour:
            where_else = "" if row.behaviour is None else f" for {row.behaviour}"
            raise RequestError(f"{where}, line {number}: {row.doc_id} has a second score{where_else}; keep one")
        of_behaviour[row.doc_id] = row.score
    if not scores:
        raise RequestError(f"{where} holds no score; give rows of doc_id, score, or leave it out")
    if _ANY in scores and len(scores) > 1:
        raise RequestError(f"{where}: only some rows name a behaviour; name it in every row or in none")
    return scores


def check_files(study: Study) -> None:
    """Refuse score files that cannot be used, before anything runs; which documents there are is not known yet.

    Raises:
        RequestError: as `read_scores`, or a behaviour is not the study's.
    """
    known = [behaviour.id for behaviour in study.behaviours]
    for name, path in study.attribute.scores.items():
        strangers = [behaviour for behaviour in read_scores(name, path) if behaviour not in (_ANY, *known)]
        if strangers:
            raise RequestError(
                f"attribute.scores.{name} = {path}: behaviour {strangers[0]} is not one of the study's; "
                f"known: {', '.join(known)}"
            )


def _rows(lines: list[str], where: str) -> Iterator[tuple[int, _Row]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _row(line, f"{where}, line {number}")


def _row(line: str, where: str) -> _Row:
    try:
        row: Any = json.loads(line)
    except ValueError:
        raise RequestError(f"{where}: not JSON; give one object a line with doc_id and score") from None
    if not isinstance(row, dict) or not isinstance(row.get("doc_id"), str):
        raise RequestError(f"{where}: lacks a doc_id that is a text; give one object a line with doc_id and score")
    score, behaviour = row.get("score"), row.get("behaviour")
    if isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score):
        raise RequestError(f"{where}: score = {score!r} of {row['doc_id']} is no finite number; mend or drop the row")
    if behaviour is not None and not isinstance(behaviour, str):
        raise RequestError(f"{where}: behaviour = {behaviour!r} is no text; give a behaviour's id or leave it out")
    return _Row(row["doc_id"], float(score), behaviour)


def _finite(score: int | float) -> bool:
    """Whether it is a finite float, which an integer of 400 digits is not."""
    try:
        return math.isfinite(score)
    except OverflowError:
        return False
