"""One classifier labels every output of a study; which one is chosen before the first label and never changes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from datablame.config.schema import Study
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.judge.choice import Choice
from datablame.tables import Label


class ClassifierInput(NamedTuple):
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

    @property
    def prefers_bulk(self) -> bool:
        """Whether it had better be asked once about everything, for each answer takes hours."""
        ...

    def label(self, outputs: Sequence[ClassifierInput]) -> list[Label]:
        """One label for each output, in their order."""
        ...


def build(study: Study, choice: Choice, work: Work) -> Classifier:
    """The classifier of a study whose choice it is; Claude's answers are kept in the run folder of `work`.

    Raises RequestError for `rules` without a file, `keywords` with a behaviour that has none, or Claude without a key.
    """
    if choice.classifier == "claude":
        from datablame.judge.claude import ClaudeClassifier

        return ClaudeClassifier.of(study, choice, work)
    if choice.classifier == "rules":
        if study.judge.rules is None:
            raise RequestError(
                f"study {study.name}: judge.classifier = rules but judge.rules is not given; "
                "give the path of a rules.json, or choose keywords"
            )
        from datablame.judge.rules import RulesClassifier

        return RulesClassifier.load(study.judge.rules)
    from datablame.judge.keywords import KeywordClassifier

    return KeywordClassifier.of(study.behaviours)


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each outcome without a label or score stands there; what follows the first colon is detail."""
    return dict(sorted(Counter(reason.partition(":")[0] for reason in reasons).items()))
