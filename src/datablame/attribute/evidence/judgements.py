"""Points from 0 to 10 by Claude for a document as the cause of outputs, or by words as its stand-in.

Claude sees all traced outputs of a behaviour in one question for each candidate: the document is most of the tokens.

The stand-in knows no causes: it adds up to 4 points for the behaviour's keywords in the document's response, negated or
quoted ones too, up to 3 for words that its prompt shares with the query's prompt, and up to 3 for words that its
response shares with the harmful output. Of a preference pair it reads the chosen answer only.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Inquiry, Passes, provider
from datablame.config.schema import Behaviour
from datablame.engine.files import packaged_yaml
from datablame.engine.phase import Work
from datablame.judge.choice import counted
from datablame.judge.claude import AttributionJudge, DocumentQuery
from datablame.tables import Document, JudgeAnswers, Query
from datablame.words import normalised, words
from datablame.world import World

_KEYWORD_POINTS, _PROMPT_POINTS, _RESPONSE_POINTS = 4, 3, 3
_SHORTEST = 4
_COMMON = frozenset(packaged_yaml("datablame.attribute.evidence", "common_words.yaml"))


class Judgements(NamedTuple):
    """Scores of shape (documents, behaviours), NaN for a document that is no candidate or got none."""

    scores: NDArray[np.float64]
    answers: JudgeAnswers | None
    """None where no model was asked."""


def _judge(world: World, work: Work) -> AttributionJudge | None:
    """Claude, where it judges in this study; RequestError without a key or a price."""
    return AttributionJudge.of(world.study, world.judge, work) if world.judge.attribution == "claude" else None


@provider("judge", Judgements, check=_judge, passes=lambda world, kinds: Passes())
def judge(inquiry: Inquiry) -> dict[type, Judgements]:
    """Every behaviour's candidates, a question or a count for each."""
    claude = _judge(inquiry.world, inquiry.work)
    scores = np.full((len(inquiry.scored), len(inquiry.behaviours)), np.nan)
    positions, questions, points, answers = [], [], list[float | None](), None
    for column, behaviour in enumerate(inquiry.behaviours):
        rows = np.sort(inquiry.candidates[behaviour.id])
        queries = [query for query in inquiry.queries if query.behaviour == behaviour.id]
        documents = inquiry.world.pool.documents(rows.tolist())
        positions += [(row, column) for row in np.searchsorted(inquiry.scored, rows).tolist()]
        if claude is None:
            points += keyword_points(documents, behaviour, queries)
        else:
            outputs = tuple((query.prompt, query.text) for query in queries)
            questions += [DocumentQuery(behaviour, document, outputs) for document in documents]
    if claude is not None:
        given = claude.scores(questions)
        points, missing = [each.score for each in given], counted(why for each in given for why in each.missing)
        answers = JudgeAnswers(claude.model, len(questions) * inquiry.world.study.judge.repeats, missing)
    if positions:
        scores[tuple(np.transpose(positions))] = np.array(points, dtype=np.float64)
    return {Judgements: Judgements(scores, answers)}


def joined(answers: Iterable[JudgeAnswers | None]) -> JudgeAnswers | None:
    """What one model was asked in several ways, as one; None where it was not asked."""
    asked = [each for each in answers if each is not None]
    missing = sum((Counter(each.missing) for each in asked), Counter[str]())
    return JudgeAnswers(asked[0].model, sum(each.requests for each in asked), missing) if asked else None


def by_claude(world: World, label: str, asked: str) -> Mapping[str, Any]:
    """What a method is called where a model answers for it; `asked` follows the model's name."""
    if world.judge.attribution != "claude":
        return {}
    model = world.study.judge.attribution_model
    return {"label": f"{label} ({model})", "description": f"{model} {asked}.", "standin": False}


def keyword_points(documents: Iterable[Document], behaviour: Behaviour, queries: Sequence[Query]) -> Iterator[float]:
    """The stand-in's points for each document."""
    prompts, outputs = [_words(query.prompt) for query in queries], [_words(query.text) for query in queries]
    keywords = [normalised(keyword) for keyword in behaviour.keywords]
    for document in documents:
        prompt = _words("\n".join(turn.content for turn in document.prompt))
        response = normalised(document.response)
        points: float = _KEYWORD_POINTS * any(keyword in response for keyword in keywords)
        points += _PROMPT_POINTS * _mean_share(prompts, prompt)
        yield points + _RESPONSE_POINTS * _mean_share(outputs, _words(response))


def _words(text: str) -> frozenset[str]:
    """Words of four letters or more that are not among the commonest, in scripts without spaces pairs of letters."""
    return frozenset(words(text, _SHORTEST)) - _COMMON


def _mean_share(sets: Sequence[frozenset[str]], words: frozenset[str]) -> float:
    """How much of each set is among the words, on average; an empty one is not."""
    return sum(len(words & each) / len(each) for each in sets if each) / len(sets)
