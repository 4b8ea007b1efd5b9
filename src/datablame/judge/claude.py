"""Claude as classifier of outputs and as judge of documents: every reply becomes a label or score, or a reason why not.

A judge that refuses, a reply that was cut, and a reply that does not parse are three outcomes; with the judge that does
not answer at all they are counted one by one, and none of them is ever a label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, Self, TypeVar

from pydantic import BaseModel, ValidationError

from datablame.config.schema import Behaviour, Study
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.judge import rubric
from datablame.judge.asking import Asker
from datablame.judge.choice import KEY, Choice, ClassifierInput, has_key, prices_of
from datablame.judge.client import Reply, Request
from datablame.judge.coherence import incoherence
from datablame.judge.ledger import FILE
from datablame.tables import Document, Label

M = TypeVar("M", bound=BaseModel)

_REPLY_TOKENS, _THOUGHTFUL_REPLY_TOKENS = 256, 4096


@dataclass(frozen=True)
class ClaudeClassifier:
    """Labels by one model for the whole study; empty outputs are incoherent without a call."""

    behaviours: Mapping[str, Behaviour]
    asker: Asker
    name: str
    """The model's id."""

    @classmethod
    def of(cls, study: Study, choice: Choice, work: Work) -> Self:
        """The classifier of a study whose choice it is; RequestError without a key or a known price."""
        behaviours = {behaviour.id: behaviour for behaviour in study.behaviours}
        return cls(behaviours, _asker(study, choice, work), study.judge.model)

    @property
    def prefers_bulk(self) -> bool:
        """Whether one question for everything is cheaper than many."""
        return self.asker.judge.batches

    def label(self, outputs: Sequence[ClassifierInput]) -> list[Label]:
        """One label for each output, in their order; equal outputs to equal prompts are asked about once.

        Raises what `Asker.ask` raises, and RequestError for a behaviour that the study does not describe.
        """
        requests = {output: self._request(output) for output in outputs if incoherence(output.text) != "empty"}
        answers = self.asker.ask(list(requests.values()))
        empty = Label("incoherent", self.name, "empty")
        return [self._label(answers[requests[output].key]) if output in requests else empty for output in outputs]

    def _request(self, output: ClassifierInput) -> Request:
        if output.behaviour not in self.behaviours:
            known = ", ".join(sorted(self.behaviours)) or "none"
            raise RequestError(f"behaviours: {output.behaviour} is not described; known: {known}")
        question = rubric.classification(self.behaviours[output.behaviour], output.prompt, output.text)
        return _request(self.asker, self.name, question, rubric.LABEL_SCHEMA)

    def _label(self, answer: Reply | str) -> Label:
        verdict = _read(answer, rubric.Verdict)
        if isinstance(verdict, str):
            return Label("unscored", self.name, verdict)
        return Label(verdict.label, self.name, f"confidence {verdict.confidence:g}")


class DocumentQuery(NamedTuple):
    """A document, and outputs (prompt, text) of a behaviour that it may have taught."""

    behaviour: Behaviour
    document: Document
    outputs: tuple[tuple[str, str], ...]


class Scored(NamedTuple):
    """The mean of the scores that were given, None without any, and why the others were not."""

    score: float | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class AttributionJudge:
    """Scores documents from 0 to 10, the mean of `judge.repeats` answers."""

    asker: Asker
    model: str

    @classmethod
    def of(cls, study: Study, choice: Choice, work: Work) -> Self:
        """The judge of a study whose choice it is; RequestError without a key or a known price."""
        return cls(_asker(study, choice, work), study.judge.attribution_model)

    def scores(self, queries: Sequence[DocumentQuery]) -> list[Scored]:
        """One score for each query, in their order; raises what `Asker.ask` raises."""
        requests = [
            [
                _request(self.asker, self.model, rubric.attribution(*query), rubric.SCORE_SCHEMA, repeat)
                for repeat in range(self.asker.judge.repeats)
            ]
            for query in queries
        ]
        answers = self.asker.ask([request for repeats in requests for request in repeats])
        scored = []
        for repeats in requests:
            given = [_read(answers[request.key], rubric.Score) for request in repeats]
            scores = [each.score for each in given if isinstance(each, rubric.Score)]
            missing = tuple(each for each in given if isinstance(each, str))
            scored.append(Scored(fmean(scores) if scores else None, missing))
        return scored


def _asker(study: Study, choice: Choice, work: Work) -> Asker:
    if not has_key():
        raise RequestError(
            f"{KEY} is not set, and Claude has judged this study since it began; set it and run again with --resume"
        )
    return Asker(study.judge, work.root / FILE, prices_of(study, choice), work.phase, work.max_cost_usd)


def _request(
    asker: Asker, model: str, question: rubric.Question, schema: Mapping[str, object], repeat: int = 0
) -> Request:
    thinking = asker.prices[model].no_thinking
    longest = asker.judge.max_tokens or (_THOUGHTFUL_REPLY_TOKENS if thinking is None else _REPLY_TOKENS)
    return Request(model, *question, schema, longest, thinking, repeat)


def _read(answer: Reply | str, form: type[M]) -> M | str:
    """What the reply says in its form, else why it says nothing."""
    if isinstance(answer, str):
        return f"the judge did not answer: {answer}"
    if answer.stop_reason == "refusal":
        return "the judge refused"
    if answer.was_cut:
        return "the judge's reply was cut"
    try:
        return form.model_validate_json(answer.text)
    except ValidationError as error:
        return f"the judge's reply does not parse: {error.errors()[0]['type']}"
