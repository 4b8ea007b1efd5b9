"""How likely is it, from 0 to 10, that the document taught the output? Without a judge, words decide.

The stand-in knows no causes: it adds up to 4 points for the behaviour's keywords in the document's response, up to 3
for words that its prompt shares with the query's prompt, and up to 3 for words that its response shares with the
harmful output. A document that quotes or negates a keyword gets its points all the same.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence
from datablame.attribute.registry import method
from datablame.judge.keywords import normalised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["llm_judge"]

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
    description="Stand-in for an LLM judge, 0 to 10: keywords and words shared with the harmful output, by rule.",
    needs="text",
    whole_pool=False,
    standin=True,
)
def llm_judge(evidence: Evidence) -> "NDArray[np.float64]":
    """Points from 0 to 10, averaged over the behaviour's queries."""
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
