"""How likely is it, from 0 to 10, that the document taught the outputs? Claude says so, or words as its stand-in."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.judgements import Judgements, by_claude
from datablame.attribute.registry import Evidence, method

_ASKED = "is asked, from 0 to 10, how likely the document taught the harmful outputs"
_called = partial(by_claude, label="llm-judge", asked=_ASKED)


@method("llm-judge", needs=(Judgements,), whole_pool=False, standin=True, missing=-1.0, variant=_called)
def llm_judge(evidence: Evidence) -> NDArray[np.float64]:
    """Points from 0 to 10; a document that the judge gave none ranks after every one that has some."""
    return evidence[Judgements].scores
