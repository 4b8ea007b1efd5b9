"""Items of work at a checkpoint: directions of queries, gradients and mean hidden states of documents."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import Role, WorkerState, not_finite, save
from datablame.attribute.registry import Inquiry
from datablame.config.schema import Attribute, ModelRef
from datablame.errors import RequestError

if TYPE_CHECKING:
    from datablame.attribute.kernels.per_example import Directions, Similarities
    from datablame.attribute.kernels.projection import Projected
    from datablame.models.chat import Encoded, Preference

QUERIES, EXACTNESS = "gradients-queries", "gradients-exactness"

Queries = tuple[tuple["Encoded", ...], ...]
"""The harmful outputs, grouped by behaviour."""


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


def _checkpoint(state: WorkerState) -> tuple[Any, list[int], int]:
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
    return model, blocks, chosen_layer(settings, reference, n)


def query_item(queries: Queries, differentiated: bool, both_ends: bool, state: WorkerState) -> str:
    """Hidden states and directions go to files, one for each layer; the result is the type of the weights.

    With `both_ends` the directions of one checkpoint are followed by those averaged over both.
    """
    import torch

    from datablame.attribute.kernels.hooks import mean_hidden
    from datablame.attribute.kernels.per_example import directions
    from datablame.models.load import load_model

    settings, models = state.world.study.attribute, state.world.models
    model, blocks, layer = _checkpoint(state)
    every = [query for group in queries for query in group]
    state.save_states(QUERIES, mean_hidden(model, every, layer, settings.batch_tokens), "the queries")
    towards = directions(model, queries, blocks) if differentiated else {}
    if both_ends:
        role: Role = "before" if settings.checkpoint == "after" else "after"
        other = load_model(getattr(models, role), device=models.device, field=f"models.{role}")
        means = directions(model, queries, blocks, other)
        towards = {name: torch.cat([part, means[name]]) for name, part in towards.items()}
    for name, part in towards.items():
        save(state.folder / f"directions/{name}.safetensors", {"direction": part}, "the queries")
    return str(model.dtype).removeprefix("torch.")


def gradient_item(with_states: list[int], key: str, rows: list[int], state: WorkerState) -> dict[str, Any]:
    """Dot products, norms and losses of the documents; mean hidden states of some of them go to a file."""
    similar = _compared(state, state.world.pool.encoded(rows), state.world.study.attribute.index, bool(with_states))
    result = {"dots": similar.dots.tolist(), "norms": similar.norms.tolist(), "losses": similar.losses.tolist()}
    if not all(map(math.isfinite, [*result["norms"], *result["losses"]])):
        raise not_finite(f"the gradients of {key}")
    if with_states:
        state.save_states(key, similar.states[with_states])
    return result


def state_item(key: str, rows: list[int], state: WorkerState) -> None:
    """Mean hidden states alone."""
    from datablame.attribute.kernels.hooks import mean_hidden

    model, _, layer = _checkpoint(state)
    batch_tokens = state.world.study.attribute.batch_tokens
    state.save_states(key, mean_hidden(model, state.world.pool.encoded(rows), layer, batch_tokens))


def exactness_item(rows: list[int], queries: Queries, state: WorkerState) -> dict[str, Any]:
    """How a sample of documents ranks beside float32 without projection."""
    from datablame.attribute.kernels.projection import agreement_with_exact

    documents = state.world.pool.encoded(rows)
    similar = _compared(state, documents, None)
    model, blocks, _ = _checkpoint(state)
    return agreement_with_exact(model, similar, documents, queries, blocks, state.world.study.attribute.batch_tokens)


def _directions(state: WorkerState, model: Any) -> "Directions":
    """What documents are compared with, as the queries' item left it."""
    from safetensors.torch import load_file

    from datablame.models.device import offload_device

    files = sorted((state.folder / "directions").glob("*.safetensors"))
    device = offload_device(sum(file.stat().st_size for file in files), next(model.parameters()).device)
    return {file.stem: load_file(file, str(device))["direction"] for file in files}


def _compared(
    state: WorkerState, documents: "list[Encoded | Preference]", index: str | None, with_states: bool = False
) -> "Similarities":
    """The documents beside the directions: exactly, or by projections that an index may already hold."""
    from datablame.attribute.kernels import per_example, projection

    settings = state.world.study.attribute
    model, blocks, layer = _checkpoint(state)
    directions: Directions = state.once("directions", lambda: _directions(state, model))
    size, batch_tokens = settings.projection, settings.batch_tokens
    if size is None:
        own_layer = layer if with_states else None
        return per_example.similarities(model, documents, directions, blocks, batch_tokens, own_layer)
    sides = state.once("projection", lambda: projection.projection_of(model, blocks, size))
    towards = state.once("projected directions", lambda: projection.projected_directions(directions, sides))

    def make() -> "Projected":
        return projection.projected(model, documents, sides, blocks, batch_tokens, layer)

    if index is None:
        return projection.compared(make(), towards)
    weights = state.once("digest", lambda: projection.weights_digest(model))
    key = projection.index_key(weights, blocks, layer, size, documents)
    return projection.compared(read_or_made(Path(index).expanduser() / f"{key}.safetensors", make), towards)


def read_or_made(path: Path, make: Callable[[], "Projected"]) -> "Projected":
    """What the file of an index holds, or what `make` makes, which is then written there whole.

    A file that cannot be read is made again.

    Raises:
        PhaseError: a number that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from datablame.attribute.kernels.projection import Projected

    try:
        return Projected(**load_file(path))
    except (OSError, SafetensorError):
        made = make()
        save(path, made._asdict(), "the gradients of the documents", shared=True)
        return made
