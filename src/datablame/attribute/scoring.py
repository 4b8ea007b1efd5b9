"""Every method's rounded scores as rankings of documents; what all others found is what `ensemble` joins."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence, Votes
from datablame.attribute.methods.llm_judge import MISSING
from datablame.attribute.rankings import ranked, rounded
from datablame.attribute.registry import Method, is_voter
from datablame.attribute.results import pool_of
from datablame.engine.run_folder import Inputs
from datablame.study.schema import Study
from datablame.tables import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_logger = logging.getLogger(__name__)
_EXACT = ("nothing", "scores")
"""What methods need whose scores are not sums of floats, and are taken as they are: hashes, a user's file, ranks."""


def scored_by(
    methods: Sequence[Method],
    evidence: Evidence,
    shortlist: Mapping[str, Sequence[str]],
    study: Study,
    inputs: Inputs,
) -> dict[str, dict[str, list[Score]]]:
    """Ranked scores by method and behaviour, of the documents that the method's pool has for it and gave a score.

    They are rounded before anything ranks them, so that no ranking hangs on the last bits of a float.
    """
    import numpy as np

    matrices: dict[str, NDArray[np.float64]] = {}
    for method in sorted(methods, key=lambda method: method.needs == "scores"):
        began = time.perf_counter()
        told = replace(evidence, votes=_votes(methods, matrices)) if method.needs == "scores" else evidence
        scores = method.score(told)
        matrices[method.name] = scores if method.needs in _EXACT else np.apply_along_axis(rounded, 0, scores)
        inputs.timings(f"attribute/{method.name}", "scores", time.perf_counter() - began)
    return {
        method.name: {
            behaviour.id: _ranked(evidence, method, behaviour.id, matrices[method.name][:, column], shortlist, study)
            for column, behaviour in enumerate(evidence.behaviours)
        }
        for method in methods
    }


def _votes(methods: Sequence[Method], matrices: "Mapping[str, NDArray[np.float64]]") -> Votes:
    """What the judge left open is no vote against a document."""
    import numpy as np

    voters = [method for method in methods if is_voter(method)]
    scores = {voter.name: matrices[voter.name] for voter in voters}
    if "llm-judge" in scores:
        scores["llm-judge"] = np.where(scores["llm-judge"] == MISSING, np.nan, scores["llm-judge"])
    return Votes(scores, all(voter.whole_pool for voter in voters))


def _ranked(
    evidence: Evidence,
    method: Method,
    behaviour: str,
    scores: "NDArray[np.float64]",
    shortlist: Mapping[str, Sequence[str]],
    study: Study,
) -> list[Score]:
    among = None if pool_of(method, study) == "whole" else set(shortlist[behaviour])
    own = {
        document.id: float(score)
        for document, score in zip(evidence.documents, scores, strict=True)
        if among is None or document.id in among
    }
    given = {doc_id: score for doc_id, score in own.items() if not math.isnan(score)}
    if len(given) < len(own):
        left = f"{len(own) - len(given)} of {len(own)} documents"
        _logger.warning("%s gives %s no score for %s; they are not ranked", method.name, left, behaviour)
    return ranked(behaviour, given)
