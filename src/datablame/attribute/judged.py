"""Claude as the one who answers for a method, and what it left unanswered."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from datablame.attribute.methods.llm_judge import by_claude
from datablame.attribute.registry import Method
from datablame.engine.run_folder import Inputs, write_json
from datablame.judge.choice import choice_of
from datablame.judge.reasons import counted
from datablame.study.schema import Study

if TYPE_CHECKING:
    from datablame.judge.claude import AttributionJudge, DocumentQuery


class Judged:
    """Claude, where it answers for llm-judge in this study, and how often it gave no score."""

    def __init__(self, claude: "AttributionJudge | None") -> None:
        self._claude = claude
        self._asked = 0
        self._missing: list[str] = []

    @classmethod
    def of(cls, study: Study, inputs: Inputs) -> Self:
        """The judge that the run folder has kept.

        Raises:
            RequestError: it is Claude, and there is no key or no price.
        """
        choice = choice_of(study, inputs.root)
        if choice.attribution != "claude" or "llm-judge" not in study.attribute.methods:
            return cls(None)
        from datablame.judge.claude import AttributionJudge

        return cls(AttributionJudge.of(study, choice, inputs))

    def told(self, method: Method) -> Method:
        """The method, named after the model that answers for it."""
        return method if self._claude is None or method.name != "llm-judge" else by_claude(method, self._claude.model)

    @property
    def asks(self) -> "Callable[[Sequence[DocumentQuery]], list[float | None]] | None":
        """What scores suspicions; None where nobody is asked."""
        return None if self._claude is None else self._scores

    def _scores(self, suspicions: "Sequence[DocumentQuery]") -> list[float | None]:
        assert self._claude is not None
        found = self._claude.scores(suspicions)
        self._asked += len(suspicions) * self._claude.asker.judge.repeats
        self._missing += [reason for each in found for reason in each.missing]
        return [each.score for each in found]

    def write(self, out: Path) -> None:
        """Count the questions and the answers that are missing, by reason; nothing where nobody was asked."""
        if self._claude is not None:
            rows = {"model": self._claude.model, "asked": self._asked, "missing": counted(self._missing)}
            write_json(out / "judge.json", rows)
