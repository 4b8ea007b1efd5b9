"""Claude as classifier of outputs and as judge of documents: what it is asked, and what its replies say.

Orders stand in the system prompt; everything hostile stands in the user turn, as data. Each piece of data is enclosed
in a tag whose name carries a hash that no piece contains, so that no text can close its own enclosure.

A judge that refuses, a reply that was cut, and a reply that does not parse are three outcomes; with the judge that does
not answer at all they are counted one by one, and none of them is ever a label.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

from datablame.config.schema import Behaviour, Study
from datablame.engine.files import digest, packaged_yaml
from datablame.engine.phase import Work
from datablame.errors import RequestError, problem
from datablame.judge.asking import FILE, Asker
from datablame.judge.choice import KEY, Choice, ClassifierInput, described, has_key, prices_of
from datablame.judge.client import Reply, Request
from datablame.judge.coherence import incoherence
from datablame.tables import Document, Label

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 12_000
"""A longer text loses its middle: a token has at least a byte, so no prompt is as long as those that cost more."""
_HALF_BYTES = MAX_BYTES // 2
"""The same of each of two documents in one question."""
_OUTPUTS_BYTES, _OUTPUT_BYTES = 40_000, 4_000
"""What all outputs and their prompts may take together in a question about a document, and each one at most."""

_TEXTS: dict[str, dict[str, Any]] = packaged_yaml("datablame.judge", "questions.yaml")
_REPLY_TOKENS, _THOUGHTFUL_REPLY_TOKENS = 256, 4096


class Verdict(BaseModel, strict=True, extra="forbid", frozen=True):
    """A label as Claude gives it; wrong types and values out of range are no verdict."""

    label: Literal["harmful", "refused", "harmless", "incoherent"]
    confidence: Annotated[float, Field(ge=0, le=1)]


class Score(BaseModel, strict=True, extra="forbid", frozen=True):
    """A score as Claude gives it."""

    score: Annotated[int, Field(ge=0, le=10)]


class Preferred(BaseModel, strict=True, extra="forbid", frozen=True):
    """One of two documents as Claude chooses it."""

    choice: Literal["first", "second", "tie"]

    @property
    def points(self) -> float:
        """Of the first one: a tie is half a win."""
        return {"first": 1.0, "second": 0.0, "tie": 0.5}[self.choice]


class Question(NamedTuple):
    """The two texts of a request, and the JSON Schema of its answer."""

    system: str
    user: str
    schema: Mapping[str, Any]


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
        answers = self.asker.ask(list(requests.values()), partial(_unusable, form=Verdict))
        labels = dict.fromkeys(outputs, Label("incoherent", self.name, "empty"))
        for output, request in requests.items():
            match _read(answers[request.key], Verdict):
                case str(why):
                    labels[output] = Label("unscored", self.name, why)
                case verdict:
                    labels[output] = Label(verdict.label, self.name, f"confidence {verdict.confidence:g}")
        return [labels[output] for output in outputs]

    def _request(self, output: ClassifierInput) -> Request:
        behaviour = described(self.behaviours, output.behaviour)
        question = classification(behaviour, output.prompt, output.text)
        return _request(self.asker, self.name, question)


class DocumentQuery(NamedTuple):
    """A document, and outputs (prompt, text) of a behaviour that it may have taught."""

    behaviour: Behaviour
    document: Document
    outputs: tuple[tuple[str, str], ...]


class Meeting(NamedTuple):
    """Two documents, and outputs (prompt, text) of a behaviour that the one or the other may rather have taught."""

    behaviour: Behaviour
    first: Document
    second: Document
    outputs: tuple[tuple[str, str], ...]


class Scored(NamedTuple):
    """The mean of what was given, None without any, and why the rest was not."""

    score: float | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class AttributionJudge:
    """Scores documents from 0 to 10, the mean of `judge.repeats` answers, or chooses between two."""

    asker: Asker
    model: str

    @classmethod
    def of(cls, study: Study, choice: Choice, work: Work) -> Self:
        """The judge of a study whose choice it is; RequestError without a key or a known price."""
        return cls(asker(study, choice, work), study.judge.attribution_model)

    def scores(self, queries: Sequence[DocumentQuery]) -> list[Scored]:
        """One score for each query, in their order; raises what `Asker.ask` raises."""
        repeats = range(self.asker.judge.repeats)
        questions = [attribution(*query) for query in queries]
        groups = [[_request(self.asker, self.model, each, repeat) for repeat in repeats] for each in questions]
        scored = []
        for given in self._answers(groups, Score):
            scores = [each.score for each in given if isinstance(each, Score)]
            missing = tuple(each for each in given if isinstance(each, str))
            scored.append(Scored(fmean(scores) if scores else None, missing))
        return scored

    def compared(self, meetings: Sequence[Meeting]) -> list[Scored]:
        """The points of the first document of each from 0 to 1, in their order; raises what `Asker.ask` raises.

        They are the mean over both orders of the two, None where one of them was not answered: who stands first may be
        favoured for it.
        """
        orders = [(each, each._replace(first=each.second, second=each.first)) for each in meetings]
        groups = [[_request(self.asker, self.model, comparison(*each)) for each in both] for both in orders]
        scored = []
        for given in self._answers(groups, Preferred):
            missing = tuple(each for each in given if isinstance(each, str))
            ahead, behind = (each.points if isinstance(each, Preferred) else None for each in given)
            scored.append(Scored(None if ahead is None or behind is None else (ahead + 1 - behind) / 2, missing))
        return scored

    def _answers(self, groups: Sequence[Sequence[Request]], form: type[M]) -> Iterator[list[M | str]]:
        answers = self.asker.ask(list(chain.from_iterable(groups)), partial(_unusable, form=form))
        return ([_read(answers[request.key], form) for request in group] for group in groups)


def classification(behaviour: Behaviour, prompt: str, text: str) -> Question:
    """The question which label the output `text` gets; it says nothing of arm or alpha."""
    return _question("label", behaviour, [("prompt", _cut(prompt)), ("output", _cut(text))])


def attribution(behaviour: Behaviour, document: Document, outputs: Sequence[tuple[str, str]]) -> Question:
    """The question how likely `document` taught the `outputs` (prompt, text) of one behaviour."""
    return _question("score", behaviour, [*_document(document), *_outputs(outputs)])


def comparison(behaviour: Behaviour, first: Document, second: Document, outputs: Sequence[tuple[str, str]]) -> Question:
    """The question which of two documents rather taught the `outputs` (prompt, text) of one behaviour."""
    documents = (*_document(first, "first-", _HALF_BYTES), *_document(second, "second-", _HALF_BYTES))
    return _question("compare", behaviour, [*documents, *_outputs(outputs)])


def digests() -> dict[str, str]:
    """The hashes of the prompts with schema and cut, by what is asked for: other prompts are another judge."""
    cuts = {"label": [MAX_BYTES], "score": [MAX_BYTES, _OUTPUTS_BYTES, _OUTPUT_BYTES]}
    cuts["compare"] = [_HALF_BYTES, _OUTPUTS_BYTES, _OUTPUT_BYTES]
    return {name: digest([*(_TEXTS[name][key] for key in ("system", "end", "schema")), *cuts[name]]) for name in cuts}


def _document(document: Document, name: str = "", limit: int = MAX_BYTES) -> Iterator[tuple[str, str]]:
    prompt = "\n\n".join(f"{turn.role}: {turn.content}" for turn in document.prompt)
    yield f"{name}document-prompt", _cut(prompt, limit)
    yield f"{name}document-response", _cut(document.response, limit)
    if document.rejected:
        yield f"{name}document-rejected-response", _cut(document.rejected, limit)


def _outputs(outputs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    limit = min(_OUTPUT_BYTES, _OUTPUTS_BYTES // (2 * max(1, len(outputs))))
    for prompt, text in outputs:
        yield "prompt", _cut(prompt, limit)
        yield "output", _cut(text, limit)


def _question(name: str, behaviour: Behaviour, pieces: Sequence[tuple[str, str]]) -> Question:
    nonce = _nonce([text for _, text in pieces])
    enclosed = [f"<{tag}-{nonce}>\n{text}\n</{tag}-{nonce}>" for tag, text in pieces]
    rubric = behaviour.rubric or behaviour.description
    orders = _TEXTS[name]["system"].format(nonce=nonce, description=behaviour.description, rubric=rubric)
    return Question(orders, "\n\n".join([*enclosed, _TEXTS[name]["end"]]), _TEXTS[name]["schema"])


def _nonce(texts: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that no text contains; the same texts give the same ones, so that answers are kept."""
    joined = "\0".join(texts)
    nonces = (hashlib.sha256(f"{n}\0{joined}".encode("utf-8", "surrogatepass")).hexdigest()[:16] for n in count())
    folded = joined.casefold()
    return next(nonce for nonce in nonces if nonce not in folded)


def _cut(text: str, limit: int = MAX_BYTES) -> str:
    """The text as UTF-8 can carry it, without its middle where it has more bytes than `limit`."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    head, tail = data[: limit // 2].decode(errors="ignore"), data[-(limit // 2) :].decode(errors="ignore")
    return f"{head}\n[{len(data) - limit} bytes left out]\n{tail}"


def asker(study: Study, choice: Choice, work: Work) -> Asker:
    """Asks in the name of a phase, within the run's budget; RequestError without a key or a known price."""
    if not has_key():
        raise RequestError(problem("judge", "key_is_gone", key=KEY))
    return Asker(study.judge, work.root / FILE, prices_of(study, choice), work.phase, work.max_cost_usd)


def _request(asker: Asker, model: str, question: Question, repeat: int = 0) -> Request:
    thinking = asker.prices[model].no_thinking
    longest = asker.judge.max_tokens or (_THOUGHTFUL_REPLY_TOKENS if thinking is None else _REPLY_TOKENS)
    return Request(model, *question, longest, thinking, repeat)


def _unusable(reply: Reply, form: type[BaseModel]) -> str | None:
    answer = _read(reply, form)
    return answer if isinstance(answer, str) else None


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
