"""Responses compared at the layer at which harmful and safe outputs are told apart best, a layer for each behaviour."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.states import encoded_outputs, model_and_layer, pooled_states
from datablame.attribute.loop import WorkerState, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider, unit_rows
from datablame.models.chat import Encoded
from datablame.tables import LabelName, Query


class BestLayer(NamedTuple):
    """What was found of the layers on outputs to attribution prompts alone."""

    layer: int | None
    """The one with the largest held-out AUC; None where outputs cannot be told apart at any."""
    aucs: Sequence[float]
    """By layer from 0, the embedding; none where there are fewer than two harmful or two safe outputs."""


class BestLayerCosines(NamedTuple):
    """Cosines of responses averaged over the behaviour's queries at its layer, shape (documents, behaviours)."""

    cosines: NDArray[np.float64]
    """0 for a behaviour without a layer."""
    layers: Sequence[BestLayer]
    """One a behaviour."""


@provider("layers", BestLayerCosines)
def best_layer_cosines(inquiry: Inquiry) -> Collecting:
    """First a behaviour's outputs at every layer, in an item of its own; then documents at the layers chosen."""
    serves = (BestLayerCosines,)
    keys = [f"layers-behaviour-{number:03d}" for number in range(len(inquiry.behaviours))]
    results = yield {
        key: WorkItem(partial(_chosen, key, *_outputs_of(inquiry, behaviour.id)), serves)
        for key, behaviour in zip(keys, inquiry.behaviours, strict=True)
    }
    found = [BestLayer(**results[key]) for key in keys]
    at = {key: best.layer for key, best in zip(keys, found, strict=True) if best.layer is not None}
    rows = inquiry.rows(BestLayerCosines)
    works = {
        key: partial(_compared, key, shard.tolist(), at)
        for key, shard in (shards("layers", rows) if at else {}).items()
    }
    yield {key: WorkItem(work, serves) for key, work in works.items()}
    cosines = np.zeros((len(inquiry.scored), len(keys)))
    if at:
        cosines[:, [key in at for key in keys]] = inquiry.spread(rows, saved(inquiry, works)["cosines"])
    return {BestLayerCosines: BestLayerCosines(cosines, found)}


_Outputs = tuple[list[Encoded], Mapping[LabelName, list[Encoded]], Mapping[LabelName, list[str]]]


def _outputs_of(inquiry: Inquiry, behaviour: str) -> _Outputs:
    """A behaviour's queries, its harmful and harmless outputs, and the prompts of these."""

    def of(outputs: Sequence[Query]) -> list[Query]:
        return [output for output in outputs if output.behaviour == behaviour]

    kinds: tuple[LabelName, ...] = ("harmful", "harmless")
    outputs = {label: of(inquiry.labelled[label]) for label in kinds}
    encoded = {label: encoded_outputs(inquiry, of_label) for label, of_label in outputs.items()}
    prompts = {label: [output.prompt_id for output in of_label] for label, of_label in outputs.items()}
    return encoded_outputs(inquiry, of(inquiry.queries)), encoded, prompts


def _chosen(
    key: str,
    queries: list[Encoded],
    outputs: Mapping[LabelName, list[Encoded]],
    prompts: Mapping[LabelName, list[str]],
    state: WorkerState,
) -> dict[str, Any]:
    """`BestLayer` as JSON; the mean of the queries' unit states at that layer goes to a file."""
    import torch

    from datablame.attribute.kernels.probe import separation

    model, usual, n = model_and_layer(state)
    layers = range(n + 1)
    harmful, safe = (
        pooled_states(state, model, outputs[label], layers, ["response"])[:, :, 0].double().numpy()
        for label in ("harmful", "harmless")
    )
    found = {
        layer: each
        for layer in layers
        if (each := separation(harmful[:, layer], safe[:, layer], prompts["harmful"], prompts["harmless"]))
    }
    aucs = [each.auc for each in found.values()]
    # Of equal ones that which is nearest to where other methods compare.
    best = max(
        (layer for layer in found if found[layer].found),
        default=None,
        key=lambda layer: (round(found[layer].auc, 6), -abs(layer - usual), -layer),
    )
    if best is not None:
        states = pooled_states(state, model, queries, [best], ["response"])[:, 0, 0].double().numpy()
        towards = {"towards": torch.from_numpy(unit_rows(states).mean(0))}
        save(state.folder / f"{key}.safetensors", towards, "the hidden states of the queries")
    return {"layer": best, "aucs": aucs}


def _compared(key: str, rows: list[int], at: Mapping[str, int], state: WorkerState) -> None:
    """The cosines of the documents, a column for each behaviour that has a layer."""
    import torch
    from safetensors.numpy import load_file

    model, *_ = model_and_layer(state)
    layers = sorted({*at.values()})
    states = pooled_states(state, model, state.world.pool.encoded(rows), layers, ["response"])[:, :, 0].double().numpy()
    columns = [
        unit_rows(states[:, layers.index(layer)]) @ load_file(state.folder / f"{behaviour}.safetensors")["towards"]
        for behaviour, layer in at.items()
    ]
    cosines = {"cosines": torch.from_numpy(np.stack(columns, 1))}
    save(state.folder / f"{key}.safetensors", cosines, f"the hidden states of {key}")
