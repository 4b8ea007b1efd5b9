"""The study's classifier against labels by people: one labelled file gives the sensitivity and specificity of a study.

The dichotomy is harmful or not: refused, harmless and incoherent outputs are one side, unscored ones are left out.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from datablame.engine.run_folder import Inputs, write_json
from datablame.errors import RequestError
from datablame.judge.classifier import Classifier, ClassifierInput, build
from datablame.seeds import stream_key
from datablame.stats.calibration import Accuracy, accuracy, kappa, kappa_interval
from datablame.stats.intervals import Interval
from datablame.study.schema import Study
from datablame.tables import LABELS, LabelName

FILE = "artifacts/calibration.json"
"""Where a run folder keeps what its classifier is worth; beside the phases, for it changes no sample and no label."""

LEAST_ROWS = 30
"""Labelled rows below which sensitivity and specificity say nothing."""

_FIELD = "judge.calibration"
_TEXT = ("text", "prompt", "behaviour")


class LabelledRow(NamedTuple):
    """What a person says of one output, and the output or what the classifier said of it."""

    human: LabelName
    predicted: LabelName | None
    output: ClassifierInput | None


@dataclass(frozen=True)
class Calibration:
    """What a classifier is worth."""

    classifier: str
    """Who predicted; `predicted` where the file brought the predictions."""
    n: int
    """Rows that count."""
    unscored: int
    """Rows left out because the person or the classifier gave no label."""
    counts: Accuracy
    """The dichotomy harmful or not."""
    kappa: float
    kappa_interval: Interval
    labels: Mapping[str, Mapping[str, int]]
    """How often people's label (outer) met the classifier's (inner), all labels."""

    def to_json(self) -> dict[str, Any]:
        """As it is written to calibration.json, which the report reads."""
        counts = self.counts
        return {
            **asdict(self),
            "counts": counts._asdict(),
            "kappa_interval": list(self.kappa_interval),
            "sensitivity": counts.sensitivity,
            "sensitivity_interval": list(counts.sensitivity_interval),
            "specificity": counts.specificity,
            "specificity_interval": list(counts.specificity_interval),
        }


def calibrate(study: Study, inputs: Inputs) -> None:
    """Write calibration.json before a phase runs, or remove it where `judge.calibration` is not given.

    A judge that costs money is asked about a file without predictions here, within the budget; it is not asked twice.

    Raises:
        RequestError: the file cannot be used, or the classifier is no better than chance on it.
        BudgetError: the next call to a judge might cost more than may be spent.
    """
    path = study.judge.calibration
    if path is None:
        (inputs.root / FILE).unlink(missing_ok=True)
        return
    rows = read_labelled(Path(path), [behaviour.id for behaviour in study.behaviours])
    classifier = build(study, inputs) if rows[0].predicted is None else None
    write_json(inputs.root / FILE, {"file": Path(path).name, **calibrated(path, rows, classifier).to_json()})


def calibrated(path: str, rows: Sequence[LabelledRow], classifier: Classifier | None) -> Calibration:
    """What the predictions of `rows`, or those of `classifier`, are worth; `path` is for the errors.

    Raises:
        RequestError: fewer than 30 rows count, people know one class only, or sensitivity + specificity is at most 1.
    """
    if classifier is None:
        predicted = [cast(LabelName, row.predicted) for row in rows]
    else:
        said = classifier.label([cast(ClassifierInput, row.output) for row in rows])
        predicted = [label.label for label in said]
    both = [(row.human, label) for row, label in zip(rows, predicted, strict=True)]
    scored = [pair for pair in both if "unscored" not in pair]
    human, found = ([pair[side] == "harmful" for pair in scored] for side in (0, 1))
    counts = accuracy(human, found)
    if counts.n < LEAST_ROWS:
        left_out = f" ({len(both) - counts.n} unscored are left out)" if len(both) > counts.n else ""
        raise RequestError(f"{_FIELD} = {path}: {counts.n} rows{left_out} are too few; label at least {LEAST_ROWS}")
    if not counts.positives or not counts.negatives:
        missing = "harmful" if not counts.positives else "not harmful"
        raise RequestError(f"{_FIELD} = {path}: people call none of the {counts.n} rows {missing}; label some of both")
    if counts.sensitivity + counts.specificity <= 1:
        raise RequestError(
            f"{_FIELD} = {path}: sensitivity {counts.sensitivity:.2f} and specificity {counts.specificity:.2f} are no "
            "better than chance, so that no rate can be corrected; use another classifier, or leave the file out"
        )
    agreement = kappa(counts)
    assert not math.isnan(agreement)
    return Calibration(
        classifier="predicted" if classifier is None else classifier.name,
        n=counts.n,
        unscored=len(both) - counts.n,
        counts=counts,
        kappa=agreement,
        kappa_interval=kappa_interval(human, found, stream_key("calibration", "kappa")),
        labels={
            mine: dict(Counter(label for other, label in scored if other == mine))
            for mine in LABELS
            if any(other == mine for other, _ in scored)
        },
    )


def read_labelled(path: Path, behaviours: Sequence[str]) -> list[LabelledRow]:
    """The rows of a JSONL or CSV file: `label` by a person, and `predicted`, or `text`, `prompt` and `behaviour`.

    Raises:
        RequestError: no such file, another format, a missing column, an unknown label or behaviour, or no row.
    """
    rows: list[LabelledRow] = []
    for where, row in _rows(path):
        for column in ("label", *(() if "predicted" in row else _TEXT)):
            if not isinstance(row.get(column), str):
                need = "label, and predicted or all of text, prompt and behaviour"
                raise RequestError(f"{_FIELD} = {path}: {where} has no text in column {column}; it needs {need}")
        human, predicted = _label(path, where, row, "label"), None
        output = None
        if "predicted" in row:
            predicted = _label(path, where, row, "predicted")
        else:
            output = ClassifierInput(row["behaviour"], row["prompt"], row["text"])
            if output.behaviour not in behaviours:
                known = ", ".join(behaviours)
                raise RequestError(f"{_FIELD} = {path}: {where}: behaviour = {output.behaviour!r}; known: {known}")
        if rows and (rows[0].predicted is None) != (predicted is None):
            raise RequestError(
                f"{_FIELD} = {path}: {where}: some rows have predicted and some not; give it in all or none"
            )
        rows.append(LabelledRow(human, predicted, output))
    if not rows:
        raise RequestError(f"{_FIELD} = {path} has no rows; label at least {LEAST_ROWS} outputs")
    return rows


def _label(path: Path, where: str, row: Mapping[str, Any], column: str) -> LabelName:
    value = row[column]
    if not isinstance(value, str) or value not in LABELS:
        raise RequestError(f"{_FIELD} = {path}: {where}: {column} = {value!r}; use one of {', '.join(LABELS)}")
    return value


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row after where it stands."""
    if path.suffix not in (".csv", ".jsonl"):
        raise RequestError(f"{_FIELD} = {path} is neither .jsonl nor .csv; save the labelled rows as one of these")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"{_FIELD} = {path} is not there; give a file of labelled outputs, or remove it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{_FIELD} = {path} cannot be read ({error}); give a text file in UTF-8") from None
    if path.suffix == ".csv":
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
                yield f"row {number}", row
        except csv.Error as error:
            raise RequestError(f"{_FIELD} = {path} is no CSV ({error}); save it again, or as .jsonl") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise RequestError(f"{_FIELD} = {path}: line {number} is no JSON object; write one a line")
            yield f"line {number}", value
