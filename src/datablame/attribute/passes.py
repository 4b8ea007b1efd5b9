"""The passes of a checkpoint over queries and documents as work items whose results stay on disk."""

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.attribute.evidence import Activations, Gradients
from datablame.config import Attribute, ModelRef
from datablame.errors import PhaseError, RequestError
from datablame.execute import Execution, Progress, run_items
from datablame.run_folder import Journal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from datablame.models.chat import Encoded, Preference

__all__ = ["Passes", "Task", "run_passes"]

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
        _check_lengths(task, documents)

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


def _check_lengths(task: Task, documents: Sequence["Encoded | Preference"]) -> None:
    from datablame.models.chat import answers
    from datablame.models.preflight import check_documents

    lengths = [len(answer.ids) for document in documents for answer in answers(document)]
    check_documents(task.model, task.model_field, lengths, task.settings.max_tokens)


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
        gradients = Gradients(dots.reshape(len(norms), len(task.queries)), norms, losses)
    states = [_activations(task.items / f"{key}.safetensors") for key, i in shards.items() if i.kind == "activations"]
    queries = _activations(task.items / f"{_QUERIES}.safetensors")
    return Passes(gradients, Activations(np.concatenate([queries[:0], *states]), queries))


def _activations(path: Path) -> "NDArray[np.float64]":
    import numpy as np
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        states: NDArray[np.float64] = file.get_tensor("activations").astype(np.float64)
    return states


def _load(task: Task) -> _Bench:
    from datablame.models.blocks import activation_layer, decoder_blocks, middle_blocks
    from datablame.models.pair import load_model

    model = load_model(task.model, device=task.device, field=task.model_field)
    n = len(decoder_blocks(model))
    blocks = middle_blocks(n) if task.settings.layers is None else sorted(set(task.settings.layers))
    if not blocks or not all(0 <= block < n for block in blocks):
        raise RequestError(
            f"attribute.layers = {blocks} are not decoder blocks of {task.model.path}; choose from 0 to {n - 1}"
        )
    layer = activation_layer(n) if task.settings.activation_layer is None else task.settings.activation_layer
    if not 0 <= layer <= n:
        raise RequestError(
            f"attribute.activation_layer = {layer} is no hidden state of {task.model.path}; choose from 0 to {n}"
        )
    return _Bench(task, model, blocks, layer)


def _work(bench: _Bench, item: _Item) -> dict[str, Any]:
    began = time.perf_counter()
    work = {"queries": _queries, "gradients": _gradient_shard, "activations": _activation_shard}[item.kind]
    return {**work(bench, item), "kind": item.kind, "seconds": time.perf_counter() - began}


def _queries(bench: _Bench, item: _Item) -> dict[str, Any]:
    from datablame.attribute.per_example import directions
    from datablame.attribute.pooled import mean_hidden

    task = bench.task
    every = [query for own in task.queries for query in own]
    tensors = {"activations": mean_hidden(bench.model, every, bench.layer, task.settings.batch_tokens)}
    if task.gradients:
        found = directions(bench.model, task.queries, bench.blocks)
        tensors.update({f"gradient/{name}": part for name, part in found.items()})
    _check(tensors, "the queries")
    _save(task.items / f"{_QUERIES}.safetensors", tensors)
    return {}


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
        raise _not_finite(f"the gradients of {item.key}")
    return result


def _activation_shard(bench: _Bench, item: _Item) -> dict[str, Any]:
    from datablame.attribute.pooled import mean_hidden

    states = mean_hidden(bench.model, item.documents, bench.layer, bench.task.settings.batch_tokens)
    tensors = {"activations": states}
    _check(tensors, f"the hidden states of {item.key}")
    _save(bench.task.items / f"{item.key}.safetensors", tensors)
    return {}


def _check(tensors: dict[str, "Tensor"], what: str) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise _not_finite(what)


def _not_finite(what: str) -> PhaseError:
    return PhaseError(f"{what} are not finite; set the dtype of models.before and models.after to float32")


def _save(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Write tensors whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
