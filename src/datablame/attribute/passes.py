"""The passes of a checkpoint over queries and documents as work items whose results stay on disk."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.attribute.evidence import Activations, Gradients
from datablame.attribute.kept import states
from datablame.attribute.work import QUERIES, Item, Task, load, work
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.run_folder import Journal
from datablame.study.schema import Attribute, ModelRef

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference


_SHARD_DOCUMENTS = 256
_EXACTNESS = "exactness"


class Passes(NamedTuple):
    """What the passes found; None for a pass that was not asked for."""

    gradients: Gradients | None
    activations: Activations
    exactness: Mapping[str, Any] | None = None
    """How the documents of a sample rank beside float32 without projection; None where nothing else was done."""


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

    Where both are wanted, one forward pass gives both. Shards are fixed by the documents alone and journalled as they
    finish, so that a resumed run redoes none of them. `with_activations` rises; `timed` hears (kind of pass, item,
    seconds).

    Raises:
        RequestError: the checkpoint or a layer that the study names is not there.
        PhaseError: a loss or a hidden state is not finite, or a document does not fit in memory.
    """
    finished = journal.read()
    first = {QUERIES: Item("queries", QUERIES)}
    shards = (
        _shards("gradients", documents, with_activations)
        if task.gradients
        else _shards("activations", [documents[place] for place in with_activations])
    )
    every = len(first) + len(shards)
    if not finished.keys() >= {*first, *shards}:
        check_lengths(task.model, task.model_field, task.settings, documents)

    def done(key: str, result: dict[str, Any]) -> None:
        seconds = result.pop("seconds")
        for kind in result.pop("kinds"):
            timed(kind, key, seconds)
        journal.append(key, result)

    def run(items: Mapping[str, Item], already: int) -> None:
        run_items(
            functools.partial(load, task),
            work,
            {key: item for key, item in items.items() if key not in finished},
            execution=execution,
            done=done,
            progress=progress,
            description="attribute: gradients and activations" if task.gradients else "attribute: activations",
            already=already,
        )

    run(first, min(len(finished), every - 1))
    probe = _probe(task, documents, journal.read()[QUERIES])
    run({**shards, **probe}, len(journal.read()))
    results = journal.read()
    return _gathered(task, shards, results)._replace(exactness=results[_EXACTNESS] if probe else None)


def _probe(task: Task, documents: Sequence["Encoded | Preference"], queries: Mapping[str, Any]) -> dict[str, Item]:
    """The item that compares a sample with exact arithmetic, where the study's own is not exact."""
    from datablame.attribute.exactness import sample

    narrow = queries.get("dtype", "float32") in ("float16", "bfloat16")
    if not task.gradients or not (narrow or task.approximate):
        return {}
    return {_EXACTNESS: Item("exactness", _EXACTNESS, tuple(documents[place] for place in sample(len(documents))))}


def check_lengths(
    model: ModelRef, field: str, settings: Attribute, documents: Sequence["Encoded | Preference"]
) -> None:
    """Raises RequestError where a document is longer than the checkpoint's context."""
    from datablame.models.chat import answers
    from datablame.models.preflight import check_documents

    lengths = [len(answer.ids) for document in documents for answer in answers(document)]
    check_documents(model, field, lengths, settings.max_tokens)


def _shards(
    kind: Literal["gradients", "activations"],
    documents: Sequence["Encoded | Preference"],
    seen: Sequence[int] = (),
) -> dict[str, Item]:
    wanted, items = set(seen), {}
    for start in range(0, len(documents), _SHARD_DOCUMENTS):
        key, own = f"{kind}-{start // _SHARD_DOCUMENTS:05d}", documents[start : start + _SHARD_DOCUMENTS]
        places = tuple(place for place in range(len(own)) if start + place in wanted)
        items[key] = Item(kind, key, tuple(own), places)
    return items


def _gathered(task: Task, shards: dict[str, Item], results: dict[str, Any]) -> Passes:
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
    shown = [key for key, item in shards.items() if item.kind == "activations" or item.seen]
    seen = [states(task.items / f"{key}.safetensors") for key in shown]
    queries = states(task.items / f"{QUERIES}.safetensors")
    return Passes(gradients, Activations(np.concatenate([queries[:0], *seen]), queries))
