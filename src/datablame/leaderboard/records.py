"""What each organism's study came to, in small files: they outlive run folders and may come from other machines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from datablame.config.schema import PRESENTATION, Study
from datablame.engine.files import digest, hash_file, own_object, write_atomic
from datablame.errors import RequestError, problem
from datablame.leaderboard.lds import Scores
from datablame.leaderboard.results import Entry, Result
from datablame.leaderboard.studies import Organism
from datablame.pipeline.phases import PHASES, REPORT

T = TypeVar("T")
FOLDER = "organisms"
_VERSION = 3
"""Grows when the same run gives other results."""


@dataclass(frozen=True)
class Record:
    """The results of every method on one organism; counts only for the study that they are of."""

    study: str
    """`key_of` that study."""
    entries: list[Entry]
    results: list[Result]


@dataclass(frozen=True)
class Predictions:
    """The LDS of every method on one organism."""

    study: str
    subsets: int
    scores: Scores


def key_of(study: Study) -> str:
    """A digest of all that the results follow from: the study, score files' bytes, the versions of the phases."""
    content = study.model_dump(mode="json", exclude=set(PRESENTATION))
    content["attribute"]["scores"] = {name: hash_file(Path(path)) for name, path in study.attribute.scores.items()}
    return digest([_VERSION, content, {phase.name: phase.version for phase in PHASES if phase is not REPORT}])


def read(folder: Path, studies: Mapping[Organism, Study]) -> dict[Organism, Record]:
    """The records of a folder that are of these studies as they are now."""
    records = {organism: _read(_path(folder, f"{organism}"), Record, study) for organism, study in studies.items()}
    return {organism: record for organism, record in records.items() if record is not None}


def read_predictions(folder: Path, organism: Organism, study: Study, subsets: int) -> Scores | None:
    """The LDS that a folder has of this study with so many subsets."""
    record = _read(_path(folder, f"{organism}-lds"), Predictions, study)
    return record.scores if record and record.subsets == subsets else None


def write(folder: Path, organism: Organism, record: Record | Predictions) -> None:
    """Write one file whole, over an earlier one."""
    name = f"{organism}" if isinstance(record, Record) else f"{organism}-lds"
    write_atomic(_path(folder, name), TypeAdapter(type(record)).dump_json(record, indent=1) + b"\n")


def _read(path: Path, row: type[T], study: Study) -> T | None:
    """What a file says of this study; None where it is of another one, or of another version.

    Raises RequestError where it is torn.
    """
    content = own_object(path, "delete it: then the organism runs again")
    if content.get("study") != key_of(study):
        return None
    try:
        return TypeAdapter(row).validate_python(content)
    except ValidationError:
        raise RequestError(problem("leaderboard", "torn record", path=path)) from None


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"
