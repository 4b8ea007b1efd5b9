"""Gradients of documents beside those of harmful outputs, and mean hidden states out of the same pass."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.directions import load_directions, save_directions
from datablame.attribute.loop import WorkerState, chosen_layer, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, Passes, WorkItem, once_backward, once_forward, provider
from datablame.errors import RequestError
from datablame.world import World

if TYPE_CHECKING:
    from datablame.attribute.kernels.per_example import Documents, Projected, Projection, Queries, Similarities, Sketch
    from datablame.models.chat import Encoded

_QUERIES, _OUTPUTS, _EXACTNESS = "gradients-queries", "gradients-outputs", "gradients-exactness"
_SKETCH = 32
"""Size of the projection for many outputs, where the study has none for the queries."""


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
        return np.divide(self.dots, self.norms[:, None], out=np.zeros_like(self.dots), where=self.norms[:, None] > 0)


class MeanGradients(Gradients):
    """The same with directions that are the mean of both checkpoints' gradients of a query."""


class OutputGradients(NamedTuple):
    """Cosines of projected gradients: of documents with the inquiry's amplified outputs (documents, outputs)."""

    cosines: NDArray[np.float32]


class Activations(NamedTuple):
    """Mean hidden states of the documents and of the queries, a row each."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]


def _passes(world: World, kinds: Collection[type]) -> Passes:
    """Hidden states come out of the pass for the gradients, where there is one."""
    return (once_backward if {Gradients, MeanGradients, OutputGradients} & {*kinds} else once_forward)(world, kinds)


@provider("gradients", Gradients, MeanGradients, OutputGradients, Activations, passes=_passes)
def gradients(inquiry: Inquiry) -> Collecting:
    """First the queries' directions and the outputs' gradients, then shards of documents compared with them.

    Gradients are formed only where a method asks for them; else the pass is one forward to the layer.
    """
    settings = inquiry.world.study.attribute
    of_outputs, both_ends = OutputGradients in inquiry.needs, MeanGradients in inquiry.needs
    differentiated = of_outputs or both_ends or Gradients in inquiry.needs
    rows, with_states = inquiry.rows(Gradients, MeanGradients, OutputGradients, Activations), inquiry.rows(Activations)
    queries = inquiry.encoded_by_behaviour()
    kinds = (Gradients, MeanGradients) if differentiated else ()
    before = {_QUERIES: WorkItem(partial(_query_item, queries, differentiated, both_ends), (*kinds, Activations))}
    if of_outputs:
        before[_OUTPUTS] = WorkItem(partial(_outputs_item, inquiry.encoded(inquiry.amplified)), (OutputGradients,))
    first = yield before
    items = {}
    for key, shard in shards("gradients-documents" if differentiated else "activations", rows).items():
        shown = np.flatnonzero(np.isin(shard, with_states)).tolist()
        work = partial(_item, key, shard.tolist(), shown, differentiated, of_outputs)
        items[key] = WorkItem(work, (*kinds, *((Activations,) if shown else ())))
    check = {}
    if differentiated and (settings.projection is not None or first[_QUERIES] in ("float16", "bfloat16")):
        sample = rows[evenly_spaced(len(rows))].tolist()
        check[_EXACTNESS] = WorkItem(partial(_exactness_item, sample, queries), kinds)
    results = yield items | check
    arrays = saved(inquiry, items, ("dots", "norms", "losses", "states"))
    states = saved(inquiry, [_QUERIES])["states"]
    documents = inquiry.spread(with_states, arrays.get("states", states[:0]))
    evidence: dict[type, Any] = {Activations: Activations(documents, states)}
    if differentiated:
        dots, norms, losses = (inquiry.spread(rows, arrays[name]) for name in ("dots", "norms", "losses"))
        n, exactness = len(inquiry.behaviours), results.get(_EXACTNESS)
        evidence[Gradients] = Gradients(dots[:, :n], norms, losses, exactness)
        if both_ends:
            evidence[MeanGradients] = MeanGradients(dots[:, n:], norms, losses, exactness)
        if of_outputs:
            cosines = saved(inquiry, items, ("cosines",), np.float32)["cosines"]
            evidence[OutputGradients] = OutputGradients(inquiry.spread(rows, cosines))
    return evidence


def evenly_spaced(n: int, most: int = 64) -> list[int]:
    """At most so many of `n` indices, from the first to the last."""
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)}) if n > 1 else [*range(n)]


def chosen_checkpoint(state: WorkerState) -> tuple[Any, list[int], int]:
    """The checkpoint, the blocks and the layer that the study names; RequestError where they are not there."""
    from datablame.models.blocks import decoder_blocks

    settings, world = state.world.study.attribute, state.world
    (model,) = state.models(settings.checkpoint, dtype=settings.dtype)
    blocks, n = sorted(set(settings.layers or ())), len(decoder_blocks(model))
    if not blocks or not all(0 <= block < n for block in blocks):
        path = getattr(world.models, settings.checkpoint).path
        raise RequestError(f"attribute.layers = {blocks} are not decoder blocks of {path}; choose from 0 to {n - 1}")
    return model, blocks, chosen_layer(world, settings.checkpoint, n)


def _query_item(queries: "Queries", differentiated: bool, both_ends: bool, state: WorkerState) -> str:
    """Hidden states and directions go to files, one for each layer; the result is the type of the weights.

    With `both_ends` the directions of one checkpoint are followed by those averaged over both.
    """
    import torch

    from datablame.attribute.kernels.hooks import mean_hidden
    from datablame.attribute.kernels.per_example import directions
    from datablame.models.load import load_model

    settings, models = state.world.study.attribute, state.world.models
    model, blocks, layer = chosen_checkpoint(state)
    every = [query for group in queries for query in group]
    states = {"states": mean_hidden(model, every, layer, settings.batch_tokens)}
    save(state.folder / f"{_QUERIES}.safetensors", states, "the queries")
    towards = directions(model, queries, blocks) if differentiated else {}
    if both_ends:
        role = "before" if settings.checkpoint == "after" else "after"
        other = load_model(getattr(models, role), device=models.device, field=f"models.{role}")
        means = directions(model, queries, blocks, other)
        towards = {name: torch.cat([part, means[name]]) for name, part in towards.items()}
    save_directions(state, "directions", towards)
    return str(model.dtype).removeprefix("torch.")


def _outputs_item(outputs: "Sequence[Encoded]", state: WorkerState) -> None:
    """The projected gradients of the amplified outputs go to a file."""
    from datablame.attribute.kernels.per_example import projected

    model, blocks, layer = chosen_checkpoint(state)
    sides, batch_tokens = _sides(state), state.world.study.attribute.batch_tokens
    units = projected(model, outputs, sides, blocks, batch_tokens, layer).units.float()
    save(state.folder / f"{_OUTPUTS}.safetensors", {"units": units}, "the gradients of the outputs")


def _item(
    key: str, rows: list[int], with_states: list[int], differentiated: bool, of_outputs: bool, state: WorkerState
) -> None:
    """Dot products, norms and losses of the documents and mean hidden states of some, or these states alone."""
    from datablame.attribute.kernels.hooks import mean_hidden

    settings, documents = state.world.study.attribute, state.world.pool.encoded(rows)
    if differentiated:
        similar = _compared(state, documents, settings.index, bool(with_states), of_outputs)
        tensors = {"dots": similar.dots, "norms": similar.norms, "losses": similar.losses}
        if of_outputs:
            tensors["cosines"] = similar.cosines
        if with_states:
            tensors["states"] = similar.states[with_states]
    else:
        model, _, layer = chosen_checkpoint(state)
        tensors = {"states": mean_hidden(model, documents, layer, settings.batch_tokens)}
    what = "gradients" if differentiated else "hidden states"
    save(state.folder / f"{key}.safetensors", tensors, f"the {what} of {key}")


def _exactness_item(rows: list[int], queries: "Queries", state: WorkerState) -> dict[str, Any]:
    """How a sample of documents ranks beside float32 without projection."""
    from datablame.attribute.kernels.per_example import agreement_with_exact

    documents, batch_tokens = state.world.pool.encoded(rows), state.world.study.attribute.batch_tokens
    similar, (model, blocks, _) = _compared(state, documents, None), chosen_checkpoint(state)
    return agreement_with_exact(model, similar, documents, queries, blocks, batch_tokens)


def _sides(state: WorkerState) -> "Projection":
    """What gradients are projected by, of queries if the study says so, of amplified outputs always."""
    from datablame.attribute.kernels.per_example import projection_of

    model, blocks, _ = chosen_checkpoint(state)
    size = state.world.study.attribute.projection or _SKETCH
    sides: Projection = state.once("projection", lambda: projection_of(model, blocks, size))
    return sides


def _sketch(state: WorkerState) -> "Sketch":
    """What the outputs' item left."""
    from safetensors.torch import load_file

    from datablame.attribute.kernels.per_example import Sketch

    path = state.folder / f"{_OUTPUTS}.safetensors"
    sketch: Sketch = state.once("sketch", lambda: Sketch(load_file(path)["units"], _sides(state)))
    return sketch


def _compared(
    state: WorkerState, documents: "Documents", index: str | None, states: bool = False, of_outputs: bool = False
) -> "Similarities":
    """The documents beside the directions of the queries' item: exactly, or by projections that an index may hold.

    Beside the amplified outputs by projections always.
    """
    from datablame.attribute.kernels import per_example

    settings = state.world.study.attribute
    model, blocks, layer = chosen_checkpoint(state)
    size, batch_tokens = settings.projection, settings.batch_tokens

    directions, sketch = load_directions(state, "directions", model), _sketch(state) if of_outputs else None
    if size is None:
        at = layer if states else None
        return per_example.similarities(model, documents, directions, blocks, batch_tokens, at, sketch)
    sides = _sides(state)
    towards = state.once("projected directions", lambda: per_example.projected_directions(directions, sides))
    make = partial(per_example.projected, model, documents, sides, blocks, batch_tokens, layer)
    if index is None:
        return per_example.compared(make(), towards, sketch)
    weights = state.once("digest", lambda: per_example.weights_digest(model))
    key = per_example.index_key(weights, blocks, layer, size, documents)
    return per_example.compared(read_or_made(Path(index).expanduser() / f"{key}.safetensors", make), towards, sketch)


def read_or_made(path: Path, make: Callable[[], "Projected"]) -> "Projected":
    """What the file of an index holds, or what `make` makes, then written there whole; a broken file is made again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from datablame.attribute.kernels.per_example import Projected

    try:
        return Projected(**load_file(path))
    except (OSError, SafetensorError):
        made = make()
        save(path, made._asdict(), "the gradients of the documents", shared=True)
        return made
