"""Scores that the user brings: read from JSONL, refused where they cannot be meant, missing documents left unranked."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.attribute.evidence import Evidence
from datablame.errors import RequestError
from datablame.study.schema import Study

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_ANY = None
"""Stands for every behaviour, where a file names none."""

Brought = Mapping[str | None, Mapping[str, float]]
"""Scores by behaviour and document."""


class _Row(NamedTuple):
    doc_id: str
    score: float
    behaviour: str | None


def brought(name: str, path: str) -> "Callable[[Evidence], NDArray[np.float64]]":
    """The file's scores as a method's; a document without one has none (NaN)."""

    def score(evidence: Evidence) -> "NDArray[np.float64]":
        """As they stand in the file; higher is more responsible."""
        import numpy as np

        scores = read_scores(name, path)
        columns = [scores.get(behaviour.id, scores.get(_ANY, {})) for behaviour in evidence.behaviours]
        return np.array(
            [[column.get(document.id, math.nan) for column in columns] for document in evidence.documents]
        ).reshape(len(evidence.documents), len(columns))

    return score


def read_scores(name: str, path: str) -> Brought:
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
        own = scores.setdefault(row.behaviour, {})
        if row.doc_id in own:
            asked = "" if row.behaviour is None else f" for {row.behaviour}"
            raise RequestError(f"{where}, line {number}: {row.doc_id} has a second score{asked}; keep one")
        own[row.doc_id] = row.score
    if not scores:
        raise RequestError(f"{where} holds no score; give rows of doc_id, score, or leave it out")
    if _ANY in scores and len(scores) > 1:
        raise RequestError(f"{where}: only some rows name a behaviour; name it in every row or in none")
    return scores


def check_brought(study: Study) -> None:
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


def check_pool(study: Study, pool: Collection[str]) -> None:
    """Refuse score files of another pool.

    Raises:
        RequestError: a document is not in the pool.
    """
    for name, path in study.attribute.scores.items():
        every = dict.fromkeys(doc_id for own in read_scores(name, path).values() for doc_id in own)
        strangers = [doc_id for doc_id in every if doc_id not in pool]
        if strangers:
            raise RequestError(
                f"attribute.scores.{name} = {path}: {len(strangers)} of {len(every)} documents are not in the pool, "
                f"the first is {strangers[0]}; take them out, or score the pool that data names"
            )


def check_scored(study: Study, documents: Collection[str], traced: Sequence[str]) -> None:
    """Refuse score files that would rank nothing; some missing documents are only left unranked.

    Raises:
        RequestError: none of the documents to rank has a score for any traced behaviour.
    """
    for name, path in study.attribute.scores.items():
        scores = read_scores(name, path)
        if not any(scores.get(behaviour, scores.get(_ANY, {})).keys() & documents for behaviour in traced):
            raise RequestError(
                f"attribute.scores.{name} = {path}: none of the {len(documents)} documents to rank has a score for "
                f"{', '.join(traced)}; score them, or leave the file out"
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
