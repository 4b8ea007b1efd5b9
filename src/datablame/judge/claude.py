"""Claude as classifier of outputs and as judge of documents: every reply becomes a label or score, or a reason why not.

A judge that refuses, a reply that was cut, and a reply that does not parse are three outcomes; with the judge that does
not answer at all they are counted one by one, and none of them is ever a label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import NamedTuple, Self, TypeVar

from pydantic import BaseModel, ValidationError

from datablame.config.schema import Behaviour, Study
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.judge import rubric
from datablame.judge.asking import Asker
from datablame.judge.choice import KEY, Choice, ClassifierInput, described, has_key, prices_of, problem
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
        labels = dict.fromkeys(outputs, Label("incoherent", self.name, "empty"))
        for output, request in requests.items():
            match _read(answers[request.key], rubric.Verdict):
                case str(why):
                    labels[output] = Label("unscored", self.name, why)
                case verdict:
                    labels[output] = Label(verdict.label, self.name, f"confidence {verdict.confidence:g}")
        return [labels[output] for output in outputs]

    def _request(self, output: ClassifierInput) -> Request:
        behaviour = described(self.behaviours, output.behaviour)
        question = rubric.classification(behaviour, output.prompt, output.text)
        return _request(self.asker, self.name, question, rubric.LABEL_SCHEMA)


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
        return cls(asker(study, choice, work), study.judge.attribution_model)

    def scores(self, queries: Sequence[DocumentQuery]) -> list[Scored]:
        """One score for each query, in their order; raises what `Asker.ask` raises."""
        questions = [(rubric.attribution(*query), rubric.SCORE_SCHEMA) for query in queries]
        repeats = range(self.asker.judge.repeats)
        requests = [[_request(self.asker, self.model, *each, repeat) for repeat in repeats] for each in questions]
        answers = self.asker.ask(list(chain.from_iterable(requests)))
        scored = []
        for asked in requests:
            given = [_read(answers[request.key], rubric.Score) for request in asked]
            scores = [each.score for each in given if isinstance(each, rubric.Score)]
            missing = tuple(each for each in given if isinstance(each, str))
            scored.append(Scored(fmean(scores) if scores else None, missing))
        return scored


def asker(study: Study, choice: Choice, work: Work) -> Asker:
    """Asks in the name of a phase, within the run's budget; RequestError without a key or a known price."""
    if not has_key():
        raise RequestError(problem("key_is_gone", key=KEY))
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
