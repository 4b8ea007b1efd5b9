"""The study's classifier against labels by people: one labelled file gives the sensitivity and specificity of a study.

The dichotomy is harmful or not: refused, harmless and incoherent outputs are one side, unscored ones are left out.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config.schema import Study
from datablame.engine.files import write_atomic
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.judge.choice import Choice, Classifier, ClassifierInput, build
from datablame.seeds import stream_key
from datablame.stats.calibration import accuracy, kappa, kappa_interval
from datablame.tables import LABELS, Calibration, Confusion, LabelName, encoded, path_of

LEAST_ROWS = 30
"""Labelled rows below which sensitivity and specificity say nothing."""

_TEXT = ("text", "prompt", "behaviour")


class LabelledRow(NamedTuple):
    """What a person says of one output, and the output or what the classifier said of it."""

    human: LabelName
    predicted: LabelName | None
    output: ClassifierInput | None


def calibrate(study: Study, choice: Choice, work: Work) -> None:
    """Write the table Calibration before a phase runs, or remove it where `judge.calibration` is not given.

    A judge that costs money is asked about a file without predictions here, within the budget; it is not asked twice.
    Raises RequestError where the file cannot be used, and what the classifier raises.
    """
    path, table = study.judge.calibration, path_of(Calibration, work.root)
    if path is None:
        table.unlink(missing_ok=True)
        return
    rows = read_labelled(Path(path), [behaviour.id for behaviour in study.behaviours])
    classifier = build(study, choice, work) if rows[0].predicted is None else None
    write_atomic(table, encoded(Calibration, calibrated(path, rows, classifier)))


def calibrated(path: str, rows: Sequence[LabelledRow], classifier: Classifier | None) -> Calibration:
    """What the predictions of the rows of `path`, or those of `classifier`, are worth.

    Raises RequestError where fewer than 30 rows count, people know one class only, or the classifier is no better than
    chance.
    """
    predicted = [row.predicted for row in rows]
    if classifier is not None:
        labels = classifier.label([row.output for row in rows if row.output is not None])
        predicted = [label.label for label in labels]
    pairs = [(row.human, label) for row, label in zip(rows, predicted, strict=True) if label is not None]
    at = f"judge.calibration = {path}"
    scored = [pair for pair in pairs if "unscored" not in pair]
    human, positive = ([pair[side] == "harmful" for pair in scored] for side in (0, 1))
    counts = accuracy(human, positive)
    if counts.n < LEAST_ROWS:
        left_out = f" ({len(pairs) - counts.n} unscored are left out)" if len(pairs) > counts.n else ""
        raise RequestError(f"{at}: {counts.n} rows{left_out} are too few; label at least {LEAST_ROWS}")
    if not counts.positives or not counts.negatives:
        missing = "harmful" if not counts.positives else "not harmful"
        raise RequestError(f"{at}: people call none of the {counts.n} rows {missing}; label some of both")
    sensitivity, specificity = counts.sensitivity, counts.specificity
    if sensitivity.rate + specificity.rate <= 1:
        raise RequestError(
            f"{at}: sensitivity {sensitivity.rate:.2f} and specificity {specificity.rate:.2f} are no "
            "better than chance, so that no rate can be corrected; use another classifier, or leave the file out"
        )
    return Calibration(
        file=Path(path).name,
        classifier="predicted" if classifier is None else classifier.name,
        n=counts.n,
        unscored=len(pairs) - counts.n,
        counts=Confusion(*counts),
        kappa=kappa(counts),
        kappa_interval=kappa_interval(human, positive, stream_key("calibration", "kappa")),
        labels={
            label: dict(Counter(other for person, other in scored if person == label))
            for label in LABELS
            if any(person == label for person, _ in scored)
        },
        sensitivity=sensitivity.rate,
        sensitivity_interval=sensitivity[1:],
        specificity=specificity.rate,
        specificity_interval=specificity[1:],
    )


def read_labelled(path: Path, behaviours: Sequence[str]) -> list[LabelledRow]:
    """The rows of a JSONL or CSV file: `label` by a person, and `predicted`, or `text`, `prompt` and `behaviour`.

    Raises RequestError where it cannot be read, or a row lacks a column or has an unknown label or behaviour.
    """
    at = f"judge.calibration = {path}"
    rows: list[LabelledRow] = []
    for where, row in _rows(path):
        for column in ("label", *(() if "predicted" in row else _TEXT)):
            if not isinstance(row.get(column), str):
                need = "label, and predicted or all of text, prompt and behaviour"
                raise RequestError(f"{at}: {where} has no text in column {column}; it needs {need}")
        known = {"label": LABELS, "predicted": LABELS, "behaviour": behaviours}
        for column in ("label", "predicted" if "predicted" in row else "behaviour"):
            if row[column] not in known[column]:
                use = "known: " if column == "behaviour" else "use one of "
                raise RequestError(f"{at}: {where}: {column} = {row[column]!r}; {use}{', '.join(known[column])}")
        predicted = row.get("predicted")
        output = ClassifierInput(row["behaviour"], row["prompt"], row["text"]) if predicted is None else None
        if rows and (rows[0].predicted is None) != (predicted is None):
            raise RequestError(f"{at}: {where}: some rows have predicted and some not; give it in all or none")
        rows.append(LabelledRow(row["label"], predicted, output))
    if not rows:
        raise RequestError(f"{at} has no rows; label at least {LEAST_ROWS} outputs")
    return rows


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row after where it stands."""
    at = f"judge.calibration = {path}"
    if path.suffix not in (".csv", ".jsonl"):
        raise RequestError(f"{at} is neither .jsonl nor .csv; save the labelled rows as one of these")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"{at} is not there; give a file of labelled outputs, or remove it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{at} cannot be read ({error}); give a text file in UTF-8") from None
    if path.suffix == ".csv":
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
                yield f"row {number}", row
        except csv.Error as error:
            raise RequestError(f"{at} is no CSV ({error}); save it again, or as .jsonl") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise RequestError(f"{at}: line {number} is no JSON object; write one a line")
            yield f"line {number}", value
