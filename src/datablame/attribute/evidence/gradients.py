"""Gradients and mean hidden states of documents at one checkpoint, in one pass where both are wanted."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import Role, WorkerState, shards
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider
from datablame.attribute.tensor_files import load_states, not_finite, save, save_states
from datablame.errors import RequestError
from datablame.study.schema import Attribute, ModelRef

if TYPE_CHECKING:
    from datablame.attribute.kernels.per_example import Directions, Similarities
    from datablame.attribute.kernels.projection import Projected
    from datablame.models.chat import Encoded, Preference

_QUERIES, _EXACTNESS = "gradients-queries", "gradients-exactness"

Queries = tuple[tuple["Encoded", ...], ...]
"""The harmful outputs, grouped by behaviour."""


class Gradients(NamedTuple):
    """Dot products with the behaviours' directions (documents, behaviours), gradient norms and losses (documents)."""

    dots: NDArray[np.float64]
    norms: NDArray[np.float64]
    losses: NDArray[np.float64]
    exactness: Mapping[str, Any] | None = None
    """How a sample of documents ranks beside float32 without projection; None where nothing else was done."""

    @property
    def cosines(self) -> NDArray[np.float64]:
        """Dot products over the document's norm; a document without a gradient has 0."""
        norms = self.norms[:, None]
        return np.divide(self.dots, norms, out=np.zeros_like(self.dots), where=norms > 0)


class MeanGradients(Gradients):
    """The same with directions that are the mean of both checkpoints' gradients of a query."""


class Activations(NamedTuple):
    """Mean hidden states of the documents and of the queries, a row each."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]


@provider("gradients", Gradients, MeanGradients, Activations)
def gradients(inquiry: Inquiry) -> Collecting:
    """First the queries' directions, then shards of documents compared with them.

    Gradients are formed only where a method asks for them; else the pass is one forward to the layer.
    """
    settings = inquiry.world.study.attribute
    differentiated = bool({Gradients, MeanGradients} & inquiry.needs.keys())
    both_ends = MeanGradients in inquiry.needs
    rows = inquiry.rows(Gradients, MeanGradients, Activations)
    with_states = inquiry.rows(Activations)
    check_lengths(inquiry, settings.checkpoint, rows)
    queries: Queries = tuple(
        tuple(inquiry.encoded([query for query in inquiry.queries if query.behaviour == behaviour.id]))
        for behaviour in inquiry.behaviours
    )
    kinds = (Gradients, MeanGradients) if differentiated else ()
    first = yield {_QUERIES: WorkItem(partial(_query_item, queries, differentiated, both_ends), (*kinds, Activations))}
    items = {}
    for key, shard in shards("gradients" if differentiated else "activations", rows).items():
        shown = np.flatnonzero(np.isin(shard, with_states)).tolist()
        item = partial(_gradient_item, shown) if differentiated else _state_item
        items[key] = WorkItem(partial(item, key, shard.tolist()), (*kinds, *((Activations,) if shown else ())))
    sampled = differentiated and (settings.projection is not None or first[_QUERIES] in ("float16", "bfloat16"))
    if sampled:
        sample = rows[evenly_spaced(len(rows))].tolist()
        items[_EXACTNESS] = WorkItem(partial(_exactness_item, sample, queries), kinds)
    results = yield items
    folder = inquiry.work.out / "items"
    parts = [load_states(folder / f"{key}.safetensors") for key, item in items.items() if Activations in item.serves]
    states = load_states(folder / f"{_QUERIES}.safetensors")
    documents = inquiry.spread(with_states, np.concatenate([states[:0], *parts]))
    evidence: dict[type, Any] = {Activations: Activations(documents, states)}
    if not differentiated:
        return evidence
    dots, norms, losses = (
        inquiry.spread(rows, np.array([value for key in items if key != _EXACTNESS for value in results[key][name]]))
        for name in ("dots", "norms", "losses")
    )
    exactness = results[_EXACTNESS] if sampled else None
    n = len(inquiry.behaviours)
    evidence[Gradients] = Gradients(dots[:, :n], norms, losses, exactness)
    if both_ends:
        evidence[MeanGradients] = MeanGradients(dots[:, n:], norms, losses, exactness)
    return evidence


def check_lengths(inquiry: Inquiry, role: Role, rows: NDArray[np.int64], beside: "Sequence[Encoded]" = ()) -> None:
    """Raises RequestError where a document, or an output beside them, is longer than the checkpoint's context."""
    from datablame.models.preflight import check_documents

    world = inquiry.world
    lengths = [*world.pool.tokens[rows].tolist(), *(len(output.ids) for output in beside)]
    check_documents(getattr(world.models, role), f"models.{role}", lengths, world.study.attribute.max_tokens)


def chosen_layer(settings: Attribute, reference: ModelRef, n: int) -> int:
    """The hidden state that is averaged, of a checkpoint with `n` blocks.

    Raises:
        RequestError: it has no such hidden state.
    """
    from datablame.models.blocks import activation_layer

    layer = activation_layer(n) if settings.activation_layer is None else settings.activation_layer
    if not 0 <= layer <= n:
        raise RequestError(
            f"attribute.activation_layer = {layer} is no hidden state of {reference.path}; choose from 0 to {n}"
        )
    return layer


def evenly_spaced(n: int, most: int = 64) -> list[int]:
    """At most so many of `n` indices, from the first to the last."""
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)}) if n > 1 else [*range(n)]


class _Checkpoint(NamedTuple):
    model: Any
    blocks: list[int]
    layer: int


def _checkpoint(state: WorkerState) -> _Checkpoint:
    """The checkpoint, the blocks and the layer that the study names.

    Raises:
        RequestError: they are not there.
    """
    from datablame.models.blocks import decoder_blocks, middle_blocks

    settings = state.world.study.attribute
    reference = getattr(state.world.models, settings.checkpoint)
    (model,) = state.models(settings.checkpoint, dtype=settings.dtype)
    n = len(decoder_blocks(model))
    blocks = middle_blocks(n) if settings.layers is None else sorted(set(settings.layers))
    if not blocks or not all(0 <= block < n for block in blocks):
        raise RequestError(
            f"attribute.layers = {blocks} are not decoder blocks of {reference.path}; choose from 0 to {n - 1}"
        )
    return _Checkpoint(model, blocks, chosen_layer(settings, reference, n))


def _query_item(queries: Queries, differentiated: bool, both_ends: bool, state: WorkerState) -> str:
    """Hidden states and directions go to files, one for each layer; the result is the type of the weights."""
    import torch

    from datablame.attribute.kernels.hidden import mean_hidden
    from datablame.attribute.kernels.per_example import directions, mean_directions
    from datablame.models.load import load_model

    settings, models = state.world.study.attribute, state.world.models
    model, blocks, layer = _checkpoint(state)
    every = [query for group in queries for query in group]
    states = mean_hidden(model, every, layer, settings.batch_tokens)
    save_states(state.folder / f"{_QUERIES}.safetensors", states, "the queries")
    towards = directions(model, queries, blocks) if differentiated else {}
    if both_ends:
        other: Role = "before" if settings.checkpoint == "after" else "after"
        beside = load_model(getattr(models, other), device=models.device, field=f"models.{other}")
        means = mean_directions((model, beside), queries, blocks)
        towards = {name: torch.cat([part, means[name]]) for name, part in towards.items()}
    for name, part in towards.items():
        save(state.folder / f"directions/{name}.safetensors", {"direction": part}, "the queries")
    return str(model.dtype).removeprefix("torch.")


def _directions(state: WorkerState, model: Any) -> "Directions":
    """What documents are compared with, as the queries' item left it."""
    from safetensors.torch import load_file

    from datablame.models.device import offload_device

    def load() -> "Directions":
        files = sorted((state.folder / "directions").glob("*.safetensors"))
        device = offload_device(sum(file.stat().st_size for file in files), next(model.parameters()).device)
        return {file.stem: load_file(file, str(device))["direction"] for file in files}

    directions: Directions = state.once("directions", load)
    return directions


def _gradient_item(with_states: list[int], key: str, rows: list[int], state: WorkerState) -> dict[str, Any]:
    settings = state.world.study.attribute
    documents = state.world.pool.encoded(rows)
    similar = _compared(state, documents, settings.index, with_states=bool(with_states))
    result = {"dots": similar.dots.tolist(), "norms": similar.norms.tolist(), "losses": similar.losses.tolist()}
    if not all(map(math.isfinite, [*result["norms"], *result["losses"]])):
        raise not_finite(f"the gradients of {key}")
    if with_states:
        save_states(state.folder / f"{key}.safetensors", similar.states[with_states], f"the hidden states of {key}")
    return result


def _compared(
    state: WorkerState, documents: "list[Encoded | Preference]", index: str | None, *, with_states: bool = False
) -> "Similarities":
    """The documents beside the directions: exactly, or by projections that an index may already hold."""
    from datablame.attribute.kernels.per_example import similarities
    from datablame.attribute.kernels.projection import (
        compared,
        index_key,
        projected,
        projected_directions,
        projection_of,
        read_or_made,
        weights_digest,
    )

    settings = state.world.study.attribute
    model, blocks, layer = _checkpoint(state)
    directions, size = _directions(state, model), settings.projection
    if size is None:
        own_layer = layer if with_states else None
        return similarities(model, documents, directions, blocks, settings.batch_tokens, own_layer)
    projection = state.once("projection", lambda: projection_of(model, blocks, size))
    towards = state.once("projected directions", lambda: projected_directions(directions, projection))

    def make() -> "Projected":
        return projected(model, documents, projection, blocks, settings.batch_tokens, layer)

    if index is None:
        return compared(make(), towards)
    weights = state.once("digest", lambda: weights_digest(model))
    key = index_key(weights, blocks, layer, size, documents)
    return compared(read_or_made(Path(index).expanduser(), key, make), towards)


def _state_item(key: str, rows: list[int], state: WorkerState) -> None:
    from datablame.attribute.kernels.hidden import mean_hidden

    model, _, layer = _checkpoint(state)
    documents = state.world.pool.encoded(rows)
    states = mean_hidden(model, documents, layer, state.world.study.attribute.batch_tokens)
    save_states(state.folder / f"{key}.safetensors", states, f"the hidden states of {key}")


def _exactness_item(rows: list[int], queries: Queries, state: WorkerState) -> dict[str, Any]:
    from datablame.attribute.kernels.exactness import agreement_with_exact

    documents = state.world.pool.encoded(rows)
    similar = _compared(state, documents, None)
    model, blocks, _ = _checkpoint(state)
    return agreement_with_exact(model, similar, documents, queries, blocks, state.world.study.attribute.batch_tokens)
