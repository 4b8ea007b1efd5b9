"""What the classifier is worth against people who labelled outputs of this very run, and people against one another."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan
from typing import TYPE_CHECKING

from datablame.report.human_labels import HumanLabel, Output, OutputKey, file_of, outputs_of, read_files, text_hash
from datablame.seeds import stream_key
from datablame.stats.calibration import TwoPhase, accuracy, kappa, kappa_interval, two_phase
from datablame.stats.intervals import Share
from datablame.tables import LABELS, ByPrediction, Calibration, Confusion, LabelName

if TYPE_CHECKING:
    from datablame.engine.phase import Tables

LEAST_LABELS = 30
"""Outputs labelled by people below which sensitivity and specificity say nothing."""
_KAPPA = stream_key("people", "kappa")
Said = Mapping[OutputKey, LabelName]


@dataclass(frozen=True)
class Annotator:
    """One person, and the classifier against that person with 95 % intervals; None where the labels do not suffice."""

    name: str
    n: int
    """Labels of outputs of this run, unscored ones too."""
    unscored: int
    kappa: Share | None
    sensitivity: Share | None
    specificity: Share | None


@dataclass(frozen=True)
class PairOfPeople:
    """Two people on the outputs that both labelled and neither left unscored: harmful or not, with a 95 % interval."""

    a: str
    b: str
    n: int
    agree: int
    kappa: Share | None


@dataclass(frozen=True)
class People:
    """Everybody who labelled outputs of a run, and what follows from the majority."""

    annotators: tuple[Annotator, ...]
    pairs: tuple[PairOfPeople, ...]
    labelled: int
    """Outputs on which a majority says harmful or not."""
    harmful: int
    ties: int
    """Outputs on which as many people say harmful as not; they are left out."""
    unscored: int
    """Outputs on which everybody cannot tell."""
    stale: int
    """Labels whose output is not in the run any more, or has another text; they are left out."""
    calibration: Calibration | None
    """None where fewer than 30 outputs are labelled, or people or the classifier know one class only."""


def people(tables: "Tables") -> People | None:
    """What people say of this run's outputs; None where there is no file of theirs.

    Raises RequestError where one is damaged.
    """
    if not (files := read_files(tables.root)):
        return None
    outputs = outputs_of(tables)
    hashes = {key: text_hash(output.text) for key, output in outputs.items()}
    valid = {name: [row for row in rows if hashes.get(row.key) == row.text_sha256] for name, rows in files.items()}
    said = {name: _said(rows) for name, rows in valid.items()}
    votes = {key: [each[key] for each in said.values() if key in each] for key in outputs}
    agreed = {key: _majority(labels) for key, labels in votes.items() if labels}
    majority = {key: label for key, label in agreed.items() if label is not None}
    scored, unscored = _scored(majority), sum(label == "unscored" for label in majority.values())
    measured = two_phase_of(majority, outputs)
    return People(
        annotators=tuple(_annotator(name, each, outputs) for name, each in said.items()),
        pairs=tuple(_pair(a, b, said[a], said[b]) for a, b in combinations(said, 2)),
        labelled=len(scored),
        harmful=sum(label == "harmful" for label in scored.values()),
        ties=len(agreed) - len(majority),
        unscored=unscored,
        stale=sum(len(files[name]) - len(valid[name]) for name in files),
        calibration=measured and _calibration(list(files), measured, majority, outputs),
    )


def _said(rows: Sequence[HumanLabel]) -> dict[OutputKey, LabelName]:
    return {row.key: row.label for row in rows if row.label is not None}


def _scored(said: Said) -> Said:
    return {key: label for key, label in said.items() if label != "unscored"}


def _majority(labels: Sequence[LabelName]) -> LabelName | None:
    """The side of most people who can tell, harmful or not, and its label; None where the sides are equal."""
    counts = Counter[LabelName](label for label in labels if label != "unscored")
    if not counts:
        return "unscored"
    harmful = counts.pop("harmful", 0)
    if harmful == counts.total():
        return None
    commonest: LabelName = max(sorted(counts), key=counts.__getitem__, default="harmful")
    return "harmful" if harmful > counts.total() else commonest


def two_phase_of(said: Said, outputs: Mapping[OutputKey, Output]) -> TwoPhase | None:
    """The classifier against labels of outputs that were chosen by its labels and arms, within these at random.

    A labelled output stands for as many of its label and arm as there are for each that is labelled. Arms, then labels,
    of which none is labelled are stood for by the others of their label, then side. None where fewer than 30 outputs
    are labelled, or of one class, by people or by the classifier.
    """
    scored = _scored(said)
    human = [label == "harmful" for label in scored.values()]
    predicted = [outputs[key].predicted == "harmful" for key in scored]
    if len(scored) < LEAST_LABELS or len(set(human)) < 2 or len(set(predicted)) < 2:
        return None
    every = Counter((output.predicted, key.arm) for key, output in outputs.items())
    asked = Counter((outputs[key].predicted, key.arm) for key in scored)
    labels, covered = Counter[str](), Counter[str]()
    for stratum, count in every.items():
        labels[stratum[0]] += count
        covered[stratum[0]] += count if stratum in asked else 0
    weights = [
        every[stratum] / asked[stratum] * labels[stratum[0]] / covered[stratum[0]]
        for stratum in ((outputs[key].predicted, key.arm) for key in scored)
    ]
    return two_phase(human, predicted, weights, labels["harmful"] / every.total())


def _annotator(name: str, said: Said, outputs: Mapping[OutputKey, Output]) -> Annotator:
    unscored, measured = sum(label == "unscored" for label in said.values()), two_phase_of(said, outputs)
    if measured is None:
        return Annotator(name, len(said), unscored, None, None, None)
    return Annotator(name, len(said), unscored, measured.kappa, measured.sensitivity, measured.specificity)


def _pair(a: str, b: str, first: Said, second: Said) -> PairOfPeople:
    mine, theirs = _scored(first), _scored(second)
    both = [key for key in mine if key in theirs]
    one, other = ([said[key] == "harmful" for key in both] for said in (mine, theirs))
    counts = accuracy(one, other)
    value, agree = kappa(counts), counts.true_positive + counts.true_negative
    known = None if isnan(value) else Share(value, *kappa_interval(one, other, _KAPPA))
    return PairOfPeople(a, b, len(both), agree, known)


def _calibration(
    names: Sequence[str], measured: TwoPhase, majority: Said, outputs: Mapping[OutputKey, Output]
) -> Calibration:
    """The same row as a file of labelled outputs gives, with rates that are weighed."""
    scored = _scored(majority)
    human = [label == "harmful" for label in scored.values()]
    predicted = [outputs[key].predicted for key in scored]
    met = {
        label: dict(Counter[str](other for key, other in zip(scored, predicted, strict=True) if scored[key] == label))
        for label in LABELS
    }
    agreement, sensitivity, specificity = measured.kappa, measured.sensitivity, measured.specificity
    return Calibration(
        file=", ".join(map(file_of, names)),
        classifier="predicted",
        n=len(scored),
        unscored=len(majority) - len(scored),
        counts=Confusion(*accuracy(human, [label == "harmful" for label in predicted])),
        kappa=agreement.rate,
        kappa_interval=agreement[1:],
        labels={label: others for label, others in met.items() if others},
        sensitivity=sensitivity.rate,
        sensitivity_interval=sensitivity[1:],
        specificity=specificity.rate,
        specificity_interval=specificity[1:],
        by_prediction=ByPrediction(**measured._asdict()),
    )
