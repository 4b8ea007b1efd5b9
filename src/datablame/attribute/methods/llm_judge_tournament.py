"""Of two documents, which is likelier to have taught the outputs? Claude says so, or words as its stand-in."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.judgements import by_claude
from datablame.attribute.evidence.tournament import Comparisons
from datablame.attribute.registry import Evidence, method

_ASKED = "is asked of two documents, in both orders, which one likelier taught the harmful outputs"
_called = partial(by_claude, label="llm-judge, pairwise", asked=_ASKED)


@method("llm-judge-tournament", needs=(Comparisons,), whole_pool=False, standin=True, missing=-1.0, variant=_called)
def llm_judge_tournament(evidence: Evidence) -> NDArray[np.float64]:
    """The chance to beat a document of average strength; one that was never compared ranks after all that were."""
    return evidence[Comparisons].scores
