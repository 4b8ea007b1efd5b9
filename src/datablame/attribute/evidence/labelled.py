"""States of outputs whose label is known, traced or not, and of generic refusals and answers that stand in for them."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.states import encoded_outputs, model_and_layer, pooled_states
from datablame.attribute.loop import WorkerState, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider
from datablame.engine.files import packaged_yaml
from datablame.models.chat import Encoded, encode_pair
from datablame.tables import LabelName, Query

_GENERIC = packaged_yaml("datablame.attribute.evidence", "generic_answers.yaml")
_GENERIC_ITEM = "labelled-generic"
_PROMPTS = 40
"""Harmless prompts that get a generic refusal and a generic answer each."""


class LabelledActivations(NamedTuple):
    """Outputs to attribution prompts, their labels, and their states averaged over the response, a row each."""

    outputs: Sequence[Query]
    labels: Sequence[LabelName]
    states: NDArray[np.float64]

    def of(self, behaviour: str, label: LabelName) -> tuple[list[str], NDArray[np.float64]]:
        """The prompts of a behaviour's outputs of that label, and their states."""
        pairs = enumerate(zip(self.outputs, self.labels, strict=True))
        chosen = [index for index, (output, of) in pairs if (output.behaviour, of) == (behaviour, label)]
        return [self.outputs[index].prompt_id for index in chosen], self.states[chosen]


class GenericActivations(NamedTuple):
    """States, averaged over the response, of a generic refusal of and answer to each of some harmless prompts."""

    refused: NDArray[np.float64]
    answered: NDArray[np.float64]


@provider("labelled", LabelledActivations, GenericActivations, per_document=False)
def labelled(inquiry: Inquiry) -> Collecting:
    """Outputs in shards, and the generic texts; no document is read."""
    outputs = [output for of_label in inquiry.labelled.values() for output in of_label]
    labels = [label for label, of_label in inquiry.labelled.items() for _ in of_label]
    texts, parts = dict[str, list[Encoded]](), dict[type, list[str]]()
    if LabelledActivations in inquiry.needs:
        encoded = encoded_outputs(inquiry, outputs)
        shown = shards("labelled-outputs", np.arange(len(outputs)))
        texts |= {key: [encoded[index] for index in shard.tolist()] for key, shard in shown.items()}
        parts[LabelledActivations] = [*shown]
    if GenericActivations in inquiry.needs:
        texts[_GENERIC_ITEM] = generic_answers(inquiry)
        parts[GenericActivations] = [_GENERIC_ITEM]
    yield {key: WorkItem(partial(_item, key, texts[key]), (kind,)) for kind, keys in parts.items() for key in keys}
    states = {kind: saved(inquiry, keys)["states"] for kind, keys in parts.items()}
    evidence: dict[type, Any] = {}
    if LabelledActivations in states:
        evidence[LabelledActivations] = LabelledActivations(outputs, labels, states[LabelledActivations])
    if GenericActivations in states:
        evidence[GenericActivations] = GenericActivations(*np.split(states[GenericActivations], 2))
    return evidence


def generic_answers(inquiry: Inquiry) -> list[Encoded]:
    """The study's harmless prompts, else its attribution prompts, refused; then the same, answered."""
    from datablame.models.pair import agreed_tokens

    tokenizer = agreed_tokens(inquiry.world.models).tokenizer
    prompts = (inquiry.world.split("harmless") or inquiry.world.split("attribution"))[:_PROMPTS]
    return [
        encode_pair(tokenizer, prompt.text, texts[number % len(texts)])
        for texts in (_GENERIC["refused"], _GENERIC["answered"])
        for number, prompt in enumerate(prompts)
    ]


def _item(key: str, texts: Sequence[Encoded], state: WorkerState) -> None:
    model, layer, _ = model_and_layer(state)
    pooled = pooled_states(state, model, texts, [layer], ["response"])[:, 0, 0]
    save(state.folder / f"{key}.safetensors", {"states": pooled}, f"the hidden states of {key}")
