"""The passes of a checkpoint over queries and documents as work items whose results stay on disk."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.attribute.evidence import Activations, Gradients
from datablame.attribute.kept import not_finite, save, states
from datablame.config import Attribute, ModelRef
from datablame.errors import RequestError
from datablame.execute import Execution, Progress, run_items
from datablame.run_folder import Journal

if TYPE_CHECKING:
    from torch import Tensor

    from datablame.attribute.per_example import Directions
    from datablame.models.chat import Encoded, Preference

__all__ = ["Passes", "Task", "check_lengths", "chosen_layer", "run_passes"]

_SHARD_DOCUMENTS = 256
_QUERIES = "queries"


class Passes(NamedTuple):
    """What the passes found; None for a pass that was not asked for."""

    gradients: Gradients | None
    activations: Activations


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


class _Item(NamedTuple):
    kind: Literal["queries", "gradients", "activations"]
    key: str
    documents: tuple["Encoded | Preference", ...] = ()


@dataclass
class _Bench:
    """A worker's loaded checkpoint; the directions are read when the first shard needs them."""

    task: Task
    model: Any
    blocks: list[int]
    layer: int
    directions: dict[str, "Tensor"] = field(default_factory=dict)


def run_passes(
    task: Task,
    documents: Sequence["Encoded | Preference"],
    with_activations: Sequence[int],
    journal: Journal,
    execution: Execution,
    progress: Progress,
    timed: Callable[[str, str, float], None],
) -> Passes:
    """Gradients of all documents if the task wants them, mean hidden states of those at `with_activations`.

    Shards are fixed by the documents alone and journalled as they finish, so that a resumed run redoes none of them.
    `timed` hears (kind of pass, item, seconds).

    Raises:
        RequestError: the checkpoint or a layer that the study names is not there.
        PhaseError: a loss or a hidden state is not finite, or a document does not fit in memory.
    """
    finished = journal.read()
    first = {_QUERIES: _Item("queries", _QUERIES)}
    shards = {
        **(_shards("gradients", documents) if task.gradients else {}),
        **_shards("activations", [documents[place] for place in with_activations]),
    }
    every = len(first) + len(shards)
    if not finished.keys() >= {*first, *shards}:
        check_lengths(task.model, task.model_field, task.settings, documents)

    def done(key: str, result: dict[str, Any]) -> None:
        timed(result.pop("kind"), key, result.pop("seconds"))
        journal.append(key, result)

    for items in (first, shards):
        run_items(
            functools.partial(_load, task),
            _work,
            {key: item for key, item in items.items() if key not in finished},
            execution=execution,
            done=done,
            progress=progress,
            description="attribute: gradients and activations" if task.gradients else "attribute: activations",
            already=len(journal.read()) if items is shards else min(len(finished), every - 1),
        )
    return _gathered(task, shards, journal.read())


def check_lengths(
    model: ModelRef, field: str, settings: Attribute, documents: Sequence["Encoded | Preference"]
) -> None:
    """Raises RequestError where a document is longer than the checkpoint's context."""
    from datablame.models.chat import answers
    from datablame.models.preflight import check_documents

    lengths = [len(answer.ids) for document in documents for answer in answers(document)]
    check_documents(model, field, lengths, settings.max_tokens)


def _shards(kind: Literal["gradients", "activations"], documents: Sequence["Encoded | Preference"]) -> dict[str, _Item]:
    starts = range(0, len(documents), _SHARD_DOCUMENTS)
    keys = {start: f"{kind}-{start // _SHARD_DOCUMENTS:05d}" for start in starts}
    return {key: _Item(kind, key, tuple(documents[start : start + _SHARD_DOCUMENTS])) for start, key in keys.items()}


def _gathered(task: Task, shards: dict[str, _Item], results: dict[str, Any]) -> Passes:
    import numpy as np

    parts = [results[key] for key, item in shards.items() if item.kind == "gradients"]
    gradients = None
    if task.gradients:
        dots, norms, losses = (
            np.array([value for part in parts for value in part[name]], dtype=np.float64)
            for name in ("dots", "norms", "losses")
        )
        dots, *change = np.split(dots.reshape(len(norms), -1), 2 if task.other else 1, axis=1)
        gradients = Gradients(dots, norms, losses, *change)
    seen = [states(task.items / f"{key}.safetensors") for key, item in shards.items() if item.kind == "activations"]
    queries = states(task.items / f"{_QUERIES}.safetensors")
    return Passes(gradients, Activations(np.concatenate([queries[:0], *seen]), queries))


def _load(task: Task) -> _Bench:
    from datablame.models.blocks import decoder_blocks, middle_blocks
    from datablame.models.pair import load_model

    model = load_model(task.model, device=task.device, field=task.model_field)
    n = len(decoder_blocks(model))
    blocks = middle_blocks(n) if task.settings.layers is None else sorted(set(task.settings.layers))
    if not blocks or not all(0 <= block < n for block in blocks):
        raise RequestError(
            f"attribute.layers = {blocks} are not decoder blocks of {task.model.path}; choose from 0 to {n - 1}"
        )
    return _Bench(task, model, blocks, chosen_layer(task.settings, task.model, n))


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


def _work(bench: _Bench, item: _Item) -> dict[str, Any]:
    began = time.perf_counter()
    work = {"queries": _queries, "gradients": _gradient_shard, "activations": _activation_shard}[item.kind]
    return {**work(bench, item), "kind": item.kind, "seconds": time.perf_counter() - began}


def _queries(bench: _Bench, item: _Item) -> dict[str, Any]:
    import torch

    from datablame.attribute.per_example import directions
    from datablame.attribute.pooled import mean_hidden

    task = bench.task
    every = [query for own in task.queries for query in own]
    tensors = {"activations": mean_hidden(bench.model, every, bench.layer, task.settings.batch_tokens)}
    if task.gradients:
        found = directions(bench.model, task.queries, bench.blocks)
        if task.other is not None:
            change = _change(bench, task.other)
            found = {name: torch.cat([part, change[name]]) for name, part in found.items()}
        tensors.update({f"gradient/{name}": part for name, part in found.items()})
    save(task.items / f"{_QUERIES}.safetensors", tensors, "the queries")
    return {}


def _change(bench: _Bench, other: ModelRef) -> "Directions":
    """What made the queries likelier between the checkpoints, which are both loaded meanwhile."""
    from datablame.attribute.changes import changes
    from datablame.models.pair import load_model

    names = ("models.after", "models.before")
    field = next(name for name in names if name != bench.task.model_field)
    loaded = {bench.task.model_field: bench.model, field: load_model(other, device=bench.task.device, field=field)}
    return changes(*(loaded[name] for name in names), bench.task.queries, bench.blocks)


def _gradient_shard(bench: _Bench, item: _Item) -> dict[str, Any]:
    from safetensors import safe_open

    from datablame.attribute.per_example import similarities
    from datablame.models.device import holding

    if not bench.directions:
        path = bench.task.items / f"{_QUERIES}.safetensors"
        device = holding(path.stat().st_size, next(bench.model.parameters()).device)
        with safe_open(path, "pt", str(device)) as file:
            names = [name for name in file.keys() if name.startswith("gradient/")]  # noqa: SIM118
            bench.directions = {name.removeprefix("gradient/"): file.get_tensor(name) for name in names}
    settings = bench.task.settings
    found = similarities(bench.model, item.documents, bench.directions, bench.blocks, settings.batch_tokens)
    result = {"dots": found.dots.tolist(), "norms": found.norms.tolist(), "losses": found.losses.tolist()}
    if not all(map(math.isfinite, [*result["norms"], *result["losses"]])):
        raise not_finite(f"the gradients of {item.key}")
    return result


def _activation_shard(bench: _Bench, item: _Item) -> dict[str, Any]:
    from datablame.attribute.pooled import mean_hidden

    found = mean_hidden(bench.model, item.documents, bench.layer, bench.task.settings.batch_tokens)
    save(bench.task.items / f"{item.key}.safetensors", {"activations": found}, f"the hidden states of {item.key}")
    return {}
