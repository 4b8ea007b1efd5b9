"""Claude as classifier of outputs and as judge of documents: every reply becomes a label or score, or a reason why not.

A judge that refuses, a reply that was cut, and a reply that does not parse are three outcomes; with the judge that does
not answer at all they are counted one by one, and none of them is ever a label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, Self, TypeVar

from pydantic import BaseModel, ValidationError

from datablame.engine.run_folder import Inputs
from datablame.errors import RequestError
from datablame.judge import rubric
from datablame.judge.asking import Asker
from datablame.judge.choice import Choice, has_key, missing_key, prices_of, reply_tokens
from datablame.judge.classifier import ClassifierInput
from datablame.judge.coherence import incoherence
from datablame.judge.ledger import FILE
from datablame.judge.prices import Price
from datablame.judge.reasons import CUT, REFUSED, SILENT, UNREADABLE
from datablame.judge.request import NoReply, Reply, Request
from datablame.study.schema import Behaviour, Study
from datablame.tables import Document, Label

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class ClaudeClassifier:
    """Labels by one model for the whole study; empty outputs are incoherent without a call."""

    behaviours: Mapping[str, Behaviour]
    asker: Asker
    model: str
    price: Price

    @classmethod
    def of(cls, study: Study, choice: Choice, inputs: Inputs) -> Self:
        """The classifier of a study whose choice it is.

        Raises:
            RequestError: no key, or the model has no known price.
        """
        behaviours = {behaviour.id: behaviour for behaviour in study.behaviours}
        asker = _asker(study, choice, inputs)
        return cls(behaviours, asker, study.judge.model, asker.prices[study.judge.model])

    @property
    def name(self) -> str:
        """The model's id."""
        return self.model

    @property
    def prefers_bulk(self) -> bool:
        """Whether one question for everything is cheaper than many."""
        return self.asker.judge.batches

    def label(self, outputs: Sequence[ClassifierInput]) -> list[Label]:
        """One label for each output, in their order; equal outputs to equal prompts are asked about once.

        Raises:
            RequestError: a behaviour that the study does not describe, or key or model are wrong.
            BudgetError: the next call might exceed the budget, or the account has no credit.
        """
        requests = {output: self._request(output) for output in outputs if incoherence(output.text) != "empty"}
        replies = self.asker.ask(list(requests.values()))
        empty = Label("incoherent", self.name, "empty")
        return [self._label(replies[requests[each].key]) if each in requests else empty for each in outputs]

    def _request(self, output: ClassifierInput) -> Request:
        if output.behaviour not in self.behaviours:
            known = ", ".join(sorted(self.behaviours)) or "none"
            raise RequestError(f"behaviours: {output.behaviour} is not described; known: {known}")
        asked = rubric.classification(self.behaviours[output.behaviour], output.prompt, output.text)
        most = reply_tokens(self.asker.judge, self.price)
        return Request(self.model, asked.system, asked.user, rubric.LABEL_SCHEMA, most, self.price.no_thinking)

    def _label(self, reply: Reply | NoReply) -> Label:
        verdict = _read(reply, rubric.Verdict)
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
    """Scores documents from 0 to 10, the mean of `judge.repeats` answers.

    All outputs of a behaviour stand in one question about a document: the document is most of the tokens, and would be
    paid once for each output otherwise.
    """

    asker: Asker
    model: str
    price: Price

    @classmethod
    def of(cls, study: Study, choice: Choice, inputs: Inputs) -> Self:
        """The judge of a study whose choice it is.

        Raises:
            RequestError: no key, or the model has no known price.
        """
        asker = _asker(study, choice, inputs)
        return cls(asker, study.judge.attribution_model, asker.prices[study.judge.attribution_model])

    def scores(self, suspicions: Sequence[DocumentQuery]) -> list[Scored]:
        """One score for each suspicion, in their order.

        Raises:
            RequestError: key or model are wrong.
            BudgetError: the next call might exceed the budget, or the account has no credit.
        """
        requests = [self._requests(suspicion) for suspicion in suspicions]
        replies = self.asker.ask([request for repeats in requests for request in repeats])
        return [_mean([_read(replies[request.key], rubric.Score) for request in repeats]) for repeats in requests]

    def _requests(self, suspicion: DocumentQuery) -> list[Request]:
        asked = rubric.attribution(suspicion.behaviour, suspicion.document, suspicion.outputs)
        judge = self.asker.judge
        most = reply_tokens(judge, self.price)
        return [
            Request(self.model, asked.system, asked.user, rubric.SCORE_SCHEMA, most, self.price.no_thinking, repeat)
            for repeat in range(judge.repeats)
        ]


def _asker(study: Study, choice: Choice, inputs: Inputs) -> Asker:
    if not has_key():
        raise missing_key()
    return Asker(study.judge, inputs.root / FILE, prices_of(study, choice), inputs.phase, inputs.max_cost_usd)


def _read(reply: Reply | NoReply, form: type[M]) -> M | str:
    """What the reply says in its form, else why it says nothing."""
    if isinstance(reply, NoReply):
        return f"{SILENT}: {reply.reason}"
    if reply.stop_reason == "refusal":
        return REFUSED
    if reply.was_cut:
        return CUT
    try:
        return form.model_validate_json(reply.text)
    except ValidationError as error:
        return f"{UNREADABLE}: {error.errors()[0]['type']}"


def _mean(given: Sequence[rubric.Score | str]) -> Scored:
    scores = [each.score for each in given if not isinstance(each, str)]
    return Scored(fmean(scores) if scores else None, tuple(each for each in given if isinstance(each, str)))
