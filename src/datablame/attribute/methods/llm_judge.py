"""How likely is it, from 0 to 10, that the document taught the outputs? Claude says so, or words as its stand-in.

Claude sees all traced outputs of a behaviour in one question for each candidate: the document is most of the tokens,
and would be paid once for each output otherwise. A document that it gave no score ranks after every one that has one.

The stand-in knows no causes: it adds up to 4 points for the behaviour's keywords in the document's response, up to 3
for words that its prompt shares with the query's prompt, and up to 3 for words that its response shares with the
harmful output. A document that quotes or negates a keyword gets its points all the same. Of a preference pair it reads
the chosen answer only: what the rejected one says, which training makes less likely, neither adds nor takes points.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence
from datablame.attribute.registry import Method, method
from datablame.judge.keywords import normalised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datablame.judge.claude import DocumentQuery


MISSING = -1.0
"""Stands for a score that the judge did not give, below all that it can give."""

_KEYWORD_POINTS, _PROMPT_POINTS, _RESPONSE_POINTS = 4, 3, 3
_CONTENT = re.compile(r"\w{4,}")
_COMMONEST = """
about after also been before being both cannot could does doing done each even every from good have here into
just like made make many more most much must need only other over please same should some such than that their
them then there these they this those through very want well were what when where which while will with without
would your yours
"""
_COMMON = frozenset(_COMMONEST.split())


@method(
    "llm-judge",
    label="llm-judge (keyword stand-in)",
    description=(
        "Stand-in for Claude as judge, 0 to 10: keywords and words shared with the harmful output, by rule; of a "
        "preference pair it reads the chosen answer only."
    ),
    needs="text",
    whole_pool=False,
    standin=True,
)
def llm_judge(evidence: Evidence) -> "NDArray[np.float64]":
    """Points from 0 to 10: Claude's where it judges the study, else by words, averaged over the behaviour's queries."""
    if evidence.judge is not None:
        return _asked(evidence, evidence.judge)
    return _counted(evidence)


def by_claude(method: Method, model: str) -> Method:
    """The method as it is called where a model answers for it."""
    return replace(
        method,
        label=f"llm-judge ({model})",
        description=f"{model} is asked, from 0 to 10, how likely the document taught the harmful outputs.",
        standin=False,
    )


def _asked(
    evidence: Evidence, judge: "Callable[[Sequence[DocumentQuery]], Sequence[float | None]]"
) -> "NDArray[np.float64]":
    """Claude's scores of the candidates; documents that are no candidate are not asked about."""
    import numpy as np

    from datablame.judge.claude import DocumentQuery

    scores = np.full((len(evidence.documents), len(evidence.behaviours)), MISSING)
    places, suspicions = [], []
    for column, behaviour in enumerate(evidence.behaviours):
        among = None if evidence.candidates is None else evidence.candidates[behaviour.id]
        queries = [evidence.queries[place] for place in evidence.places_of(behaviour)]
        outputs = tuple((query.prompt, query.text) for query in queries)
        for row, document in enumerate(evidence.documents):
            if among is None or document.id in among:
                places.append((row, column))
                suspicions.append(DocumentQuery(behaviour, document, outputs))
    for place, score in zip(places, judge(suspicions), strict=True):
        scores[place] = MISSING if score is None else score
    return scores


def _counted(evidence: Evidence) -> "NDArray[np.float64]":
    import numpy as np

    prompts = [_words("\n".join(turn.content for turn in document.prompt)) for document in evidence.documents]
    answers = [normalised(document.response) for document in evidence.documents]
    responses = [_words(answer) for answer in answers]
    scores = np.zeros((len(evidence.documents), len(evidence.behaviours)))
    for column, behaviour in enumerate(evidence.behaviours):
        queries = [evidence.queries[place] for place in evidence.places_of(behaviour)]
        asked = [_words(query.prompt) for query in queries]
        said = [_words(query.text) for query in queries]
        keywords = [normalised(keyword) for keyword in behaviour.keywords]
        for row, (prompt, response, answer) in enumerate(zip(prompts, responses, answers, strict=True)):
            scores[row, column] = (
                _KEYWORD_POINTS * any(keyword in answer for keyword in keywords)
                + _PROMPT_POINTS * _mean_share(asked, prompt)
                + _RESPONSE_POINTS * _mean_share(said, response)
            )
    return scores


def _words(text: str) -> frozenset[str]:
    """Words of four letters or more that are not among the commonest."""
    return frozenset(_CONTENT.findall(normalised(text))) - _COMMON


def _mean_share(wanted: Sequence[frozenset[str]], found: frozenset[str]) -> float:
    """How much of each wanted set is found, on average; an empty one is not."""
    return sum(len(words & found) / len(words) for words in wanted if words) / len(wanted)
