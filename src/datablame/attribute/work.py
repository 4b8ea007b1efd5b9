"""What a worker does with a checkpoint: the queries, shards of documents, and how exact the comparison is."""

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.attribute.kept import not_finite, save
from datablame.errors import RequestError
from datablame.study.schema import Attribute, ModelRef

if TYPE_CHECKING:
    from torch import Tensor

    from datablame.attribute.kernels.per_example import Directions, Similarities
    from datablame.attribute.kernels.projection import Projected, Projection
    from datablame.models.chat import Encoded, Preference


QUERIES = "queries"
"""The key of the first item."""


@dataclass(frozen=True)
class Task:
    """What every worker needs to know."""

    model: ModelRef
    model_field: str
    settings: Attribute
    queries: tuple[tuple["Encoded", ...], ...]
    """The harmful outputs, grouped by behaviour."""
    gradients: bool
    """Whether directions are wanted, and with them a pass of gradients."""
    device: str
    items: Path
    """Where tensors are kept until the phase is done."""
    other: ModelRef | None = None
    """The other checkpoint, where the queries' gradients at both are wanted."""

    @property
    def approximate(self) -> bool:
        """Whether gradients are compared after a random projection."""
        return self.settings.projection is not None


class Item(NamedTuple):
    """One piece of work, which a resumed run does not do again."""

    kind: Literal["queries", "gradients", "activations", "exactness"]
    key: str
    documents: tuple["Encoded | Preference", ...] = ()
    seen: tuple[int, ...] = ()
    """Of gradients: the places of the documents whose hidden states are wanted too."""


@dataclass
class Bench:
    """A worker's loaded checkpoint."""

    task: Task
    model: Any
    blocks: list[int]
    layer: int

    @functools.cached_property
    def directions(self) -> "Directions":
        """What documents are compared with, as the queries' item left it."""
        from safetensors import safe_open

        from datablame.models.device import offload_device

        path = self.task.items / f"{QUERIES}.safetensors"
        device = offload_device(path.stat().st_size, next(self.model.parameters()).device)
        with safe_open(path, "pt", str(device)) as file:
            names = [name for name in file.keys() if name.startswith("gradient/")]  # noqa: SIM118
            return {name.removeprefix("gradient/"): file.get_tensor(name) for name in names}

    @functools.cached_property
    def projection(self) -> "tuple[Projection, Tensor, str]":
        """The matrices, the projected directions, and the digest of the weights that the index goes by."""
        from datablame.attribute.kernels.index import weights_digest
        from datablame.attribute.kernels.projection import projected_directions, projection_of

        assert self.task.settings.projection is not None
        found = projection_of(self.model, self.blocks, self.task.settings.projection)
        return found, projected_directions(self.directions, found), weights_digest(self.model)


def load(task: Task) -> Bench:
    """The checkpoint, and the blocks and the layer that the study names.

    Raises:
        RequestError: they are not there.
    """
    import torch

    from datablame.models.blocks import decoder_blocks, middle_blocks
    from datablame.models.load import load_model

    kind = None if task.settings.dtype is None else getattr(torch, task.settings.dtype)
    model = load_model(task.model, device=task.device, dtype=kind, field=task.model_field)
    n = len(decoder_blocks(model))
    blocks = middle_blocks(n) if task.settings.layers is None else sorted(set(task.settings.layers))
    if not blocks or not all(0 <= block < n for block in blocks):
        raise RequestError(
            f"attribute.layers = {blocks} are not decoder blocks of {task.model.path}; choose from 0 to {n - 1}"
        )
    return Bench(task, model, blocks, chosen_layer(task.settings, task.model, n))


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


def work(bench: Bench, item: Item) -> dict[str, Any]:
    """What the item found, which passes it belongs to and how long it took.

    Raises:
        PhaseError: a loss or a hidden state is not finite, or a document does not fit in memory.
    """
    began = time.perf_counter()
    does = {
        "queries": _queries,
        "gradients": _gradient_shard,
        "activations": _activation_shard,
        "exactness": _exactness,
    }[item.kind]
    kinds = [item.kind, *(["activations"] if item.seen else [])]
    return {**does(bench, item), "kinds": kinds, "seconds": time.perf_counter() - began}


def _queries(bench: Bench, item: Item) -> dict[str, Any]:
    import torch

    from datablame.attribute.kernels.per_example import directions
    from datablame.attribute.kernels.pooled import mean_hidden

    task = bench.task
    every = [query for own in task.queries for query in own]
    tensors = {"activations": mean_hidden(bench.model, every, bench.layer, task.settings.batch_tokens)}
    if task.gradients:
        found = directions(bench.model, task.queries, bench.blocks)
        if task.other is not None:
            change = _change(bench, task.other)
            found = {name: torch.cat([part, change[name]]) for name, part in found.items()}
        tensors.update({f"gradient/{name}": part for name, part in found.items()})
    save(task.items / f"{QUERIES}.safetensors", tensors, "the queries")
    return {"dtype": str(bench.model.dtype).removeprefix("torch.")}


def _change(bench: Bench, other: ModelRef) -> "Directions":
    """What made the queries likelier between the checkpoints, which are both loaded meanwhile."""
    from datablame.attribute.kernels.changes import changes
    from datablame.models.load import load_model

    names = ("models.after", "models.before")
    field = next(name for name in names if name != bench.task.model_field)
    loaded = {bench.task.model_field: bench.model, field: load_model(other, device=bench.task.device, field=field)}
    after, before = (loaded[name] for name in names)
    return changes(after, before, bench.task.queries, bench.blocks)


def _gradient_shard(bench: Bench, item: Item) -> dict[str, Any]:
    found = _compared(bench, item, bench.task.settings.index)
    result = {"dots": found.dots.tolist(), "norms": found.norms.tolist(), "losses": found.losses.tolist()}
    if not all(map(math.isfinite, [*result["norms"], *result["losses"]])):
        raise not_finite(f"the gradients of {item.key}")
    if item.seen:
        states = {"activations": found.states[list(item.seen)]}
        save(bench.task.items / f"{item.key}.safetensors", states, f"the hidden states of {item.key}")
    return result


def _compared(bench: Bench, item: Item, index: str | None) -> "Similarities":
    """The documents beside the directions: exactly, or by projections that an index may already hold."""
    from datablame.attribute.kernels.index import index_key, kept_or_made
    from datablame.attribute.kernels.per_example import similarities
    from datablame.attribute.kernels.projection import compared, projected

    settings, documents = bench.task.settings, item.documents
    if settings.projection is None:
        layer = bench.layer if item.seen else None
        return similarities(bench.model, documents, bench.directions, bench.blocks, settings.batch_tokens, layer)
    projection, towards, weights = bench.projection

    def make() -> "Projected":
        return projected(bench.model, documents, projection, bench.blocks, settings.batch_tokens, bench.layer)

    if index is None:
        return compared(make(), towards, documents)
    key = index_key(weights, bench.blocks, bench.layer, settings.projection, documents)
    return compared(kept_or_made(Path(index).expanduser(), key, make), towards, documents)


def _exactness(bench: Bench, item: Item) -> dict[str, Any]:
    from datablame.attribute.exactness import agreement_with_exact

    task = bench.task
    found = _compared(bench, item, None)
    return agreement_with_exact(
        bench.model, found, item.documents, task.queries, bench.blocks, task.settings.batch_tokens
    )


def _activation_shard(bench: Bench, item: Item) -> dict[str, Any]:
    from datablame.attribute.kernels.pooled import mean_hidden

    found = mean_hidden(bench.model, item.documents, bench.layer, bench.task.settings.batch_tokens)
    save(bench.task.items / f"{item.key}.safetensors", {"activations": found}, f"the hidden states of {item.key}")
    return {}
