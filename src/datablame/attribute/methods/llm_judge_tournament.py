"""Of two documents, which is likelier to have taught the outputs? Claude says so, or words as its stand-in."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.tournament import Comparisons
from datablame.attribute.registry import Evidence, method
from datablame.world import World


def by_claude(world: World) -> Mapping[str, Any]:
    """What the method is called where a model answers for it."""
    if world.judge.attribution != "claude":
        return {}
    model = world.study.judge.attribution_model
    about = f"{model} is asked of two documents, in both orders, which one likelier taught the harmful outputs."
    return {"label": f"llm-judge, pairwise ({model})", "description": about, "standin": False}


@method("llm-judge-tournament", needs=(Comparisons,), whole_pool=False, standin=True, missing=-1.0, variant=by_claude)
def llm_judge_tournament(evidence: Evidence) -> NDArray[np.float64]:
    """The chance to beat a document of average strength; one that was never compared ranks after all that were."""
    return evidence[Comparisons].scores
