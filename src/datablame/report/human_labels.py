"""What people say of a run's outputs: the outputs that they are asked about, and the files of what they said."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.engine.run_folder import HUMAN_LABELS
from datablame.errors import RequestError
from datablame.tables import LABELS, ArmSample, LabelName, SurfaceSample

if TYPE_CHECKING:
    from datablame.engine.phase import Tables

NOBODY = "human"
"""The annotator who gives no name, whose file has none in its own."""
_AFTER = "after"


@dataclass(frozen=True)
class OutputKey:
    """Which output of a run; those of the surface phase are of the arm that is not trained."""

    phase: str
    arm: str
    protocol: str
    k: int
    seed: int
    prompt_id: str
    alpha: float
    index: int


class Output(NamedTuple):
    """An output that a classifier has labelled."""

    behaviour: str
    text: str
    predicted: LabelName


class HumanLabel(NamedTuple):
    """One line of a file: the last one of an output counts, and without a label it takes the earlier ones back."""

    key: OutputKey
    text_sha256: str
    label: LabelName | None
    note: str
    annotator: str
    at: str
    """The time in UTC."""

    def line(self) -> str:
        """The row as JSON."""
        row = {**asdict(self.key), **{name: value for name, value in self._asdict().items() if name != "key"}}
        return json.dumps(row) + "\n"


def text_hash(text: str) -> str:
    """What a label remembers of the text that it was given to."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def outputs_of(tables: "Tables") -> dict[OutputKey, Output]:
    """Every output of the surface phase and of trained arms that the classifier has scored.

    The outputs of the arm that is not trained are the surface phase's.
    """
    untrained, trained = tables.rows(SurfaceSample), tables.rows(ArmSample)
    rows: list[tuple[OutputKey, SurfaceSample | ArmSample]] = [
        *((OutputKey("surface", _AFTER, "none", 0, 0, s.prompt_id, s.alpha, s.index), s) for s in untrained),
        *(
            (OutputKey("patch", s.arm, s.protocol, s.k, s.seed, s.prompt_id, s.alpha, s.index), s)
            for s in trained
            if s.protocol != "none"
        ),
    ]
    scored = ((key, row, row.label) for key, row in rows)
    return {
        key: Output(row.behaviour, row.text, label) for key, row, label in scored if label not in (None, "unscored")
    }


def file_of(annotator: str) -> str:
    """The name of a person's file in a run folder."""
    return HUMAN_LABELS.replace("*", "" if annotator == NOBODY else f"-{annotator}")


def read_files(root: Path) -> dict[str, list[HumanLabel]]:
    """What each person says, by name: one label an output, in the order in which they were given.

    Raises RequestError where a line before the last is damaged.
    """
    files = sorted(path for path in root.glob(HUMAN_LABELS) if path.is_file())
    stem = Path(file_of(NOBODY)).stem
    return {path.stem.removeprefix(stem).removeprefix("-") or NOBODY: standing(read_labels(path)) for path in files}


def standing(rows: Iterable[HumanLabel]) -> list[HumanLabel]:
    """The labels that were not taken back or given anew, in the order in which they were given."""
    last: dict[OutputKey, HumanLabel] = {}
    for row in rows:
        last.pop(row.key, None)
        if row.label is not None:
            last[row.key] = row
    return list(last.values())


def read_labels(path: Path) -> list[HumanLabel]:
    """Every line of a file; a last one that a kill has torn is none.

    Raises RequestError where a line before the last is no label.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*lines, *([torn] if torn else [])], 1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            if number > len(lines):
                break
            message = f"{path}: line {number} is no label of datablame label; mend it, or remove the line"
            raise RequestError(message) from None
    return rows


def _row(values: Mapping[str, Any]) -> HumanLabel:
    key = OutputKey(*(kind(values[name]) for name, kind in OutputKey.__annotations__.items()))
    if values["label"] is not None and values["label"] not in LABELS:
        raise ValueError(values["label"])
    texts = (str(values[name]) for name in ("note", "annotator", "at"))
    return HumanLabel(key, str(values["text_sha256"]), values["label"], *texts)
