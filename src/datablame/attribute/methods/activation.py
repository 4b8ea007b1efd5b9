"""Does the document light up the model as the harmful output does?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.gradients import Activations
from datablame.attribute.evidence.states import LastTokenActivations, ResponseMeanActivations
from datablame.attribute.registry import Evidence, method


@method("activation", needs=(Activations,))
def activation(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, h_q) averaged over the behaviour's queries."""
    return evidence.mean_cosines(*evidence[Activations])


@method("activation-centred", needs=(Activations,))
def activation_centred(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d - m, h_q - m) averaged over the behaviour's queries, with m the mean over the scored documents."""
    documents, queries = evidence[Activations]
    mean = documents.mean(0)
    return evidence.mean_cosines(documents - mean, queries - mean)


@method("activation-last", needs=(LastTokenActivations,))
def activation_last(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, h_q) averaged over the behaviour's queries, h the state of the text's last token."""
    return evidence.mean_cosines(*evidence[LastTokenActivations])


@method("activation-response", needs=(ResponseMeanActivations,))
def activation_response(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, h_q) averaged over the behaviour's queries, h averaged over the tokens of the response."""
    return evidence.mean_cosines(*evidence[ResponseMeanActivations])
