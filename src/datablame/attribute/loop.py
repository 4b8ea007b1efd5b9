"""The evidence loop: it runs whatever items the providers cut, checkpoints loaded once a worker, and resumes."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.registry import Inquiry, Method, WorkItem, costed, providers_of
from datablame.engine.execute import run_items
from datablame.engine.files import write_atomic
from datablame.engine.usage import Taken, free_memory, measured
from datablame.errors import PhaseError, RequestError
from datablame.world import World

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["before", "after"]
Checkpoint = Role | int
"""One end of the training, or an intermediate checkpoint by its index."""

_SHARD_DOCUMENTS = 256


@dataclass
class WorkerState:
    """What a worker holds between items, whatever providers cut them."""

    world: World
    folder: Path
    """Where items leave their tensors until the phase is done."""
    _provider: str = ""
    _models: dict[tuple[Checkpoint, str | None], Any] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict)

    def models(self, *roles: Checkpoint, dtype: str | None = None) -> list[Any]:
        """These checkpoints in evaluation mode, loaded where they are not yet; no other stays in memory."""
        import torch

        from datablame.models.load import load_model

        if stale := self._models.keys() - {(role, dtype) for role in roles}:
            self._made.clear()
            for key in stale:
                del self._models[key]
            free_memory()
        for role in roles:
            if (role, dtype) not in self._models:
                kind = None if dtype is None else getattr(torch, dtype)
                reference, device = self.world.models.reference(role), self.world.models.device
                name = f"models.checkpoints.{role}" if isinstance(role, int) else f"models.{role}"
                self._models[role, dtype] = load_model(reference, device=device, dtype=kind, field=name)
        return [self._models[role, dtype] for role in roles]

    def serve(self, provider: str) -> None:
        """Let go of what was made for another provider's items."""
        if provider != self._provider:
            self._made.clear()
            self._provider = provider

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once as long as the same checkpoints are held and the provider's items run."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def save(path: Path, tensors: "dict[str, Tensor]", what: str, *, shared: bool = False) -> None:
    """Write tensors whole or not at all; `shared`: other processes may write the same file.

    Raises PhaseError where one of them, which the message calls `what`, holds a number that is not finite.
    """
    from safetensors.torch import save as to_bytes

    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise PhaseError(f"{what} are not finite; set the dtype of models.before and models.after to float32")
    write_atomic(path, to_bytes({name: each.contiguous() for name, each in tensors.items()}), shared=shared)


def saved(
    inquiry: Inquiry, keys: Iterable[str], names: Collection[str] | None = None, kind: type[Any] = np.float64
) -> dict[str, NDArray[Any]]:
    """What these items left by `save` in files of their keys, by name: row after row, in the order of the items.

    Only what is named, where something is: what is large need neither be read nor be held in float64.
    """
    from safetensors import safe_open

    parts = defaultdict[str, list[NDArray[Any]]](list)
    for key in keys:
        with safe_open(inquiry.work.out / "items" / f"{key}.safetensors", "numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                if names is None or name in names:
                    parts[name].append(file.get_tensor(name))
    return {name: np.concatenate(each).astype(kind, copy=False) for name, each in parts.items()}


def shards(name: str, rows: NDArray[np.int64], most: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Rows of the pool in items of equal size, by key: fixed by the documents alone, not by who works on them.

    There are at most so many, and each has many rows then, where what an item leaves does not grow with its rows.
    """
    size = _SHARD_DOCUMENTS if most is None else max(_SHARD_DOCUMENTS, -(-len(rows) // most))
    return {f"{name}-{start // size:05d}": rows[start : start + size] for start in range(0, len(rows), size)}


def chosen_layer(world: World, role: Role, n: int) -> int:
    """The hidden state that is averaged, of a checkpoint with `n` blocks; RequestError where it has no such state."""
    layer, path = world.study.attribute.activation_layer or 0, getattr(world.models, role).path
    if not 0 <= layer <= n:
        raise RequestError(f"attribute.activation_layer = {layer} is no hidden state of {path}; choose from 0 to {n}")
    return layer


def collect(inquiry: Inquiry, methods: Sequence[Method]) -> dict[type, Any]:
    """All evidence that is wanted, by its type; what an item took goes to the methods that pay for what it makes.

    Items are journalled as they finish, so that a resumed run does none of them again. Raises RequestError where a
    checkpoint or layer is not there, PhaseError where numbers are not finite or a document does not fit in memory.
    """

    def timed(kinds: Sequence[type], key: str, taken: Taken) -> None:
        for name in costed(methods, kinds):
            inquiry.work.timings(f"attribute/{name}", key, *taken)

    state, evidence = WorkerState(inquiry.world, inquiry.work.out / "items"), dict[type, Any]()
    for provider in providers_of(inquiry.needs):
        results = None
        collecting, taken = measured(partial(provider.collect, inquiry))
        if isinstance(collecting, Mapping):
            timed(provider.yields, provider.name, taken)
            evidence |= collecting
            continue
        try:
            while True:
                results = results_of(inquiry, state, collecting.send(results), provider.name, timed)
        except StopIteration as stop:
            evidence |= stop.value
    del state
    free_memory()
    return evidence


def results_of(
    inquiry: Inquiry,
    state: WorkerState,
    items: Mapping[str, WorkItem],
    provider: str,
    timed: Callable[[Sequence[type], str, Taken], None] = lambda kinds, key, taken: None,
) -> dict[str, Any]:
    """What each item gave, now or before."""
    work, journal = inquiry.work, inquiry.work.journal
    finished = journal.read()

    def done(key: str, result: tuple[Any, Taken]) -> None:
        timed(items[key].serves, key, result[1])
        journal.append(key, result[0])

    run_items(
        partial(_itself, state),
        _work,
        {key: (provider, item) for key, item in items.items() if key not in finished},
        execution=work.execution,
        root=work.root,
        done=done,
        progress=work.progress,
        description=f"attribute: {provider}",
        already=len(items.keys() & finished.keys()),
    )
    results = journal.read()
    return {key: results[key] for key in items}


def _itself(state: WorkerState) -> WorkerState:
    """In this process the state is the same one for all stages; a worker gets a copy of it that stays there."""
    return state


def _work(state: WorkerState, job: tuple[str, WorkItem]) -> tuple[Any, Taken]:
    provider, item = job
    state.serve(provider)
    return measured(partial(item.work, state))
