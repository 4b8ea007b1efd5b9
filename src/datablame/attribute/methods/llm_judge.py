"""How likely is it, from 0 to 10, that the document taught the outputs? Claude says so, or words as its stand-in."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.judgements import Judgements
from datablame.attribute.registry import Evidence, method
from datablame.world import World


def by_claude(world: World) -> Mapping[str, Any]:
    """What the method is called where a model answers for it."""
    if world.judge.attribution != "claude":
        return {}
    model = world.study.judge.attribution_model
    about = f"{model} is asked, from 0 to 10, how likely the document taught the harmful outputs."
    return {"label": f"llm-judge ({model})", "description": about, "standin": False}


@method("llm-judge", needs=(Judgements,), whole_pool=False, standin=True, missing=-1.0, variant=by_claude)
def llm_judge(evidence: Evidence) -> NDArray[np.float64]:
    """Points from 0 to 10; a document that the judge gave none ranks after every one that has some."""
    return evidence[Judgements].scores
