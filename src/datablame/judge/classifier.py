"""One classifier labels every output of a study; which one is chosen before the first label and never changes."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from datablame.config import Study
from datablame.errors import RequestError
from datablame.records import Label

__all__ = ["Classifier", "Output", "build"]


class Output(NamedTuple):
    """What a classifier sees: the behaviour's id, what the user said and what the model answered; no arm, no alpha."""

    behaviour: str
    prompt: str
    text: str


class Classifier(Protocol):
    """Labels outputs, blind to the arm and the alpha that they come from."""

    @property
    def name(self) -> str:
        """Stands beside every label, so that no table mixes classifiers unnoticed."""
        ...

    def label(self, outputs: Sequence[Output]) -> list[Label]:
        """One label for each output, in their order."""
        ...


def build(study: Study) -> Classifier:
    """The classifier that `study.judge` names; `auto` is `rules` where there is a rules file, else `keywords`.

    Raises:
        RequestError: `rules` without a file, or `keywords` with a behaviour that has none.
    """
    judge = study.judge
    if judge.classifier == "rules" and judge.rules is None:
        raise RequestError(
            f"study {study.name}: judge.classifier = rules but judge.rules is not given; "
            "give the path of a rules.json, or choose keywords"
        )
    if judge.rules is not None and judge.classifier != "keywords":
        from datablame.judge.rules import RulesClassifier

        return RulesClassifier.load(judge.rules)

    from datablame.judge.keywords import KeywordClassifier

    return KeywordClassifier.of(study.behaviours)
