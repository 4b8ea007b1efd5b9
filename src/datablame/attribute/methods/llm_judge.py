"""How likely is it, from 0 to 10, that the document taught the outputs? Claude says so, or words as its stand-in.

Claude sees all traced outputs of a behaviour in one question for each candidate: the document is most of the tokens,
and would be paid once for each output otherwise.

The stand-in knows no causes: it adds up to 4 points for the behaviour's keywords in the document's response, up to 3
for words that its prompt shares with the query's prompt, and up to 3 for words that its response shares with the
harmful output. A document that quotes or negates a keyword gets its points all the same. Of a preference pair it reads
the chosen answer only: what the rejected one says, which training makes less likely, neither adds nor takes points.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Evidence, Inquiry, method, provider
from datablame.config.schema import Behaviour
from datablame.engine.phase import Work
from datablame.judge.keywords import normalised
from datablame.tables import Document, JudgeAnswers, Look, Query
from datablame.world import World

if TYPE_CHECKING:
    from datablame.judge.claude import AttributionJudge

_KEYWORD_POINTS, _PROMPT_POINTS, _RESPONSE_POINTS = 4, 3, 3
_CONTENT = re.compile(r"\w{4,}")
_COMMONEST = """
about after also been before being both cannot could does doing done each even every from good have here into
just like made make many more most much must need only other over please same should some such than that their
them then there these they this those through very want well were what when where which while will with without
would your yours
"""
_COMMON = frozenset(_COMMONEST.split())


class Judgements(NamedTuple):
    """Scores of shape (documents, behaviours), NaN for a document that is no candidate or got none."""

    scores: NDArray[np.float64]
    answers: JudgeAnswers | None
    """None where no model was asked."""


def _judge(world: World, work: Work) -> "AttributionJudge | None":
    """Claude, where it judges in this study; RequestError without a key or a price."""
    if world.judge.attribution != "claude":
        return None
    from datablame.judge.claude import AttributionJudge

    return AttributionJudge.of(world.study, world.judge, work)


@provider("judge", Judgements, check=_judge)
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
            questions += [(behaviour, document, outputs) for document in documents]
    if claude is not None:
        from datablame.judge.choice import counted
        from datablame.judge.claude import DocumentQuery

        scored = claude.scores([DocumentQuery(*question) for question in questions])
        points = [each.score for each in scored]
        missing = counted(reason for each in scored for reason in each.missing)
        answers = JudgeAnswers(claude.model, len(questions) * inquiry.world.study.judge.repeats, missing)
    if positions:
        scores[tuple(np.transpose(positions))] = np.array(points, dtype=np.float64)
    return {Judgements: Judgements(scores, answers)}


def by_claude(world: World) -> Mapping[str, Any]:
    """What the method is called where a model answers for it."""
    if world.judge.attribution != "claude":
        return {}
    model = world.study.judge.attribution_model
    about = f"{model} is asked, from 0 to 10, how likely the document taught the harmful outputs."
    return {"label": f"llm-judge ({model})", "description": about, "standin": False}


@method(
    "llm-judge",
    label="llm-judge (keyword stand-in)",
    description=(
        "Stand-in for Claude as judge, 0 to 10: keywords and words shared with the harmful output, by rule; of a "
        "preference pair it reads the chosen answer only."
    ),
    needs=(Judgements,),
    look=Look("#CC79A7", "#B05A8B", "P"),
    whole_pool=False,
    standin=True,
    missing=-1.0,
    variant=by_claude,
)
def llm_judge(evidence: Evidence) -> NDArray[np.float64]:
    """Points from 0 to 10; a document that the judge gave none ranks after every one that has some."""
    return evidence[Judgements].scores


def keyword_points(
    documents: Iterable[Document], behaviour: Behaviour, queries: Sequence[Query]
) -> Iterator[float | None]:
    """The stand-in's points for each document."""
    prompts, outputs = [_words(query.prompt) for query in queries], [_words(query.text) for query in queries]
    keywords = [normalised(keyword) for keyword in behaviour.keywords]
    for document in documents:
        prompt = _words("\n".join(turn.content for turn in document.prompt))
        response = normalised(document.response)
        yield (
            _KEYWORD_POINTS * any(keyword in response for keyword in keywords)
            + _PROMPT_POINTS * _mean_share(prompts, prompt)
            + _RESPONSE_POINTS * _mean_share(outputs, _words(response))
        )


def _words(text: str) -> frozenset[str]:
    """Words of four letters or more that are not among the commonest."""
    return frozenset(_CONTENT.findall(normalised(text))) - _COMMON


def _mean_share(sets: Sequence[frozenset[str]], words: frozenset[str]) -> float:
    """How much of each set is among the words, on average; an empty one is not."""
    return sum(len(words & each) / len(each) for each in sets if each) / len(sets)
