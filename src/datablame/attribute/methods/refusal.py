"""Does the document's response refuse? Then a method on activations may have found refusals and nothing else."""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.labelled import GenericActivations, LabelledActivations
from datablame.attribute.evidence.states import ResponseMeanActivations
from datablame.attribute.registry import Evidence, method, unit_rows

_FEWEST = 5
"""Refused outputs below which generic texts say more of refusals than the study does."""


@method("refusal", needs=(ResponseMeanActivations, LabelledActivations, GenericActivations))
def refusal(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, r), the same for every behaviour, with r the difference in means of Arditi et al. (2024).

    r is refused less other outputs to a prompt, averaged over prompts that have both. With fewer than 5 such refused
    outputs it is generic refusals of harmless prompts less generic answers to them.
    """
    outputs, labels, states = evidence[LabelledActivations]
    refused, prompts = np.array(labels) == "refused", np.array([output.prompt_id for output in outputs])
    both = sorted({*prompts[refused]} & {*prompts[~refused]})
    n = int((refused & np.isin(prompts, both)).sum())
    if n >= _FEWEST:
        of_both = [(refused & (prompts == prompt), ~refused & (prompts == prompt)) for prompt in both]
        direction = np.mean([states[ours].mean(0) - states[others].mean(0) for ours, others in of_both], axis=0)
        source = f"{n} refused outputs to {len(both)} prompts"
    else:
        generic = evidence[GenericActivations]
        direction = generic.refused.mean(0) - generic.answered.mean(0)
        source = f"generic texts, for the study has {n} refused outputs beside others to the same prompts"
    evidence.report("direction of refusal", source)
    cosines = unit_rows(evidence[ResponseMeanActivations].documents) @ unit_rows(direction[None])[0]
    return evidence.for_every_behaviour(cosines)
