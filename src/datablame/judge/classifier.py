"""One classifier labels every output of a study; which one is chosen before the first label and never changes."""

from typing import Protocol

from datablame.config import Study
from datablame.errors import RequestError
from datablame.records import Label

__all__ = ["Classifier", "build"]


class Classifier(Protocol):
    """Labels one output; blind to the arm and the alpha that it comes from."""

    @property
    def name(self) -> str:
        """Stands beside every label, so that no table mixes classifiers unnoticed."""
        ...

    def classify(self, behaviour: str, prompt: str, text: str) -> Label:
        """The label of `text`, said in answer to `prompt`, with regard to the behaviour of that id."""
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
