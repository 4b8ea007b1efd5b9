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
from datablame.errors import RequestError, problem
from datablame.judge.choice import Choice, Classifier, ClassifierInput, build
from datablame.seeds import stream_key
from datablame.stats.calibration import accuracy, kappa, kappa_interval
from datablame.tables import LABELS, Calibration, Confusion, LabelName, encoded, path_of

LEAST_ROWS = 30
"""Labelled rows below which sensitivity and specificity say nothing."""


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
    rows = check_labelled(study)
    classifier = build(study, choice, work) if rows[0].predicted is None else None
    write_atomic(table, encoded(Calibration, calibrated(path, rows, classifier)))


def check_labelled(study: Study) -> Sequence[LabelledRow]:
    """The rows of `judge.calibration`, none where it is not given, before anything runs and anybody is asked.

    Raises RequestError where they cannot be read, or calibrate nothing whatever the classifier says.
    """
    if (path := study.judge.calibration) is None:
        return ()
    rows = read_labelled(Path(path).expanduser(), [behaviour.id for behaviour in study.behaviours])
    if rows[0].predicted is not None:
        calibrated(path, rows, None)
    else:
        _check_classes(path, [row.human == "harmful" for row in rows if row.human != "unscored"])
    return rows


def _check_classes(path: str, harmful: Sequence[bool], left_out: str = "") -> None:
    """Raises RequestError where labels by people are fewer than 30, or of one class."""
    if len(harmful) < LEAST_ROWS:
        raise _refused(path, "too_few", n=len(harmful), left_out=left_out, least=LEAST_ROWS)
    if all(harmful) or not any(harmful):
        raise _refused(path, "one_class", n=len(harmful), missing="not harmful" if harmful[0] else "harmful")


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
    scored = [pair for pair in pairs if "unscored" not in pair]
    human, positive = ([pair[side] == "harmful" for pair in scored] for side in (0, 1))
    counts, unscored = accuracy(human, positive), len(pairs) - len(scored)
    _check_classes(path, human, f" ({unscored} unscored are left out)" if unscored else "")
    sensitivity, specificity = counts.sensitivity, counts.specificity
    if sensitivity.rate + specificity.rate <= 1:
        raise _refused(path, "by_chance", sensitivity=sensitivity.rate, specificity=specificity.rate)
    met = {label: dict(Counter[str](other for person, other in scored if person == label)) for label in LABELS}
    return Calibration(
        file=Path(path).name,
        classifier="predicted" if classifier is None else classifier.name,
        n=counts.n,
        unscored=unscored,
        counts=Confusion(*counts),
        kappa=kappa(counts),
        kappa_interval=kappa_interval(human, positive, stream_key("calibration", "kappa")),
        labels={label: others for label, others in met.items() if others},
        sensitivity=sensitivity.rate,
        sensitivity_interval=sensitivity[1:],
        specificity=specificity.rate,
        specificity_interval=specificity[1:],
    )


def read_labelled(path: Path, behaviours: Sequence[str]) -> list[LabelledRow]:
    """The rows of a JSONL or CSV file: `label` by a person, and `predicted`, or `text`, `prompt` and `behaviour`.

    Raises RequestError where it cannot be read, or a row lacks a column or has an unknown label or behaviour.
    """
    known = {"label": LABELS, "predicted": LABELS, "behaviour": behaviours}
    rows: list[LabelledRow] = []
    for where, row in _rows(path):
        predicted = row.get("predicted")
        for column in ("label", *(() if "predicted" in row else ("text", "prompt", "behaviour"))):
            if not isinstance(row.get(column), str):
                raise _refused(path, "no_text", where=where, column=column)
        for column in ("label", "predicted" if "predicted" in row else "behaviour"):
            if row[column] not in known[column]:
                use = "known: " if column == "behaviour" else "use one of "
                names = ", ".join(known[column])
                raise _refused(path, "unknown", where=where, column=column, value=row[column], use=use, known=names)
        if rows and (rows[0].predicted is None) != (predicted is None):
            raise _refused(path, "mixed", where=where)
        output = ClassifierInput(row["behaviour"], row["prompt"], row["text"]) if predicted is None else None
        rows.append(LabelledRow(row["label"], predicted, output))
    if not rows:
        raise _refused(path, "no_rows", least=LEAST_ROWS)
    return rows


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row after where it stands."""
    if path.suffix not in (".csv", ".jsonl"):
        raise _refused(path, "suffix")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
                yield f"row {number}", row
            return
    except FileNotFoundError:
        raise _refused(path, "absent") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, "unreadable", error=error) from None
    except csv.Error as error:
        raise _refused(path, "no_csv", error=error) from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise _refused(path, "no_object", where=f"line {number}")
            yield f"line {number}", value


def _refused(path: Path | str, name: str, **values: object) -> RequestError:
    return RequestError(f"judge.calibration = {path}{problem('judge', name, **values)}")
