"""Does the document's response point where harmful outputs depart from safe ones, as the before checkpoint sees them?

The direction is the mean activation of harmful minus safe responses. Each harmful output is set against the safe ones
to its own prompt where there are any, so that it tells how the model answers and not what it was asked.
"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.responses import ResponseActivations
from datablame.attribute.registry import Evidence, method


@method("activation-diff", needs=(ResponseActivations,))
def activation_diff(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, mean over queries of h_q - s_q), with s_q the mean over the safe outputs to the query's prompt.

    Where that prompt has no safe output, s_q is the mean over the behaviour's; where the behaviour has none there is no
    direction, and its documents have no score. A document whose h is zero scores 0.
    """
    states = evidence[ResponseActivations]
    columns = []
    for behaviour in evidence.behaviours:
        safe = [index for index, output in enumerate(states.outputs) if output.behaviour == behaviour.id]
        differences = []
        for query in evidence.queries_of(behaviour) if safe else []:
            prompt = evidence.queries[query].prompt_id
            to_prompt = [index for index in safe if states.outputs[index].prompt_id == prompt]
            differences.append(states.queries[query] - states.harmless[to_prompt or safe].mean(0))
        if not differences:
            columns.append(evidence.no_score(behaviour, "no safe output to set the harmful ones against"))
            continue
        towards = np.mean(differences, axis=0)
        norms = np.linalg.norm(states.documents, axis=1) * np.linalg.norm(towards)
        columns.append(np.where(norms == 0, 0.0, states.documents @ towards / np.where(norms == 0, 1.0, norms)))
    return np.stack(columns, 1)
