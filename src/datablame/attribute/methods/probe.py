"""Does the document's response lie where a probe that knows harmful from safe outputs says harmful?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.labelled import LabelledActivations
from datablame.attribute.evidence.states import ResponseMeanActivations
from datablame.attribute.kernels.probe import fitted, separation
from datablame.attribute.registry import Evidence, method


@method("probe", needs=(ResponseMeanActivations, LabelledActivations))
def probe(evidence: Evidence) -> NDArray[np.float64]:
    """<w, h_d> + b of a logistic regression on harmful against harmless outputs to the behaviour's attribution prompts.

    No score with fewer than two of a kind, and none where the lower bound of the AUC on outputs held out is not above
    .5: what does not tell outputs apart says nothing of documents.
    """
    documents, columns = evidence[ResponseMeanActivations].documents, []
    for behaviour in evidence.behaviours:
        (asked, harmful), (also_asked, safe) = (
            evidence[LabelledActivations].of(behaviour.id, label) for label in ("harmful", "harmless")
        )
        told = separation(harmful, safe, asked, also_asked)
        if told is None:
            counts = f"{len(harmful)} harmful and {len(safe)} safe outputs"
            columns.append(evidence.no_score(behaviour, f"{counts}, where a probe needs two of each"))
            continue
        evidence.report("outputs", f"{len(harmful)} harmful, {len(safe)} safe", behaviour.id)
        evidence.report("held out", "whole prompts" if told.by_prompt else "outputs", behaviour.id)
        for name, value in (("AUC", told.auc), ("AUC, lower bound", told.low), ("accuracy", told.accuracy)):
            evidence.report(f"held-out {name}", value, behaviour.id)
        if told.found:
            columns.append(fitted(harmful, safe).decision(documents))
        else:
            why = f"the probe does not tell outputs apart (held-out AUC {told.auc:.2f}, lower bound {told.low:.2f})"
            columns.append(evidence.no_score(behaviour, why))
    return np.stack(columns, 1)
