"""The pass of the before checkpoint over responses: of documents, of traced outputs, of harmless ones beside them."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.attribute.kept import save, states
from datablame.attribute.passes import check_lengths
from datablame.attribute.work import chosen_layer
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.run_folder import Journal
from datablame.study.schema import Attribute, ModelRef

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datablame.models.chat import Encoded, Preference


_SHARD = 256
_KIND = "responses"


@dataclass(frozen=True)
class ContrastTask:
    """What every worker needs to know."""

    before: ModelRef
    settings: Attribute
    device: str
    items: Path
    """Where tensors are kept until the phase is done."""


class _Item(NamedTuple):
    key: str
    texts: tuple["Encoded | Preference", ...]


class _Bench(NamedTuple):
    task: ContrastTask
    model: Any
    layer: int


def run_contrast(
    task: ContrastTask,
    texts: Sequence["Encoded | Preference"],
    journal: Journal,
    execution: Execution,
    progress: Progress,
    timed: Callable[[str, str, float], None],
) -> "NDArray[np.float64]":
    """The mean hidden state of each text's response at the before checkpoint, chosen minus rejected for a pair.

    Shards are fixed by the texts alone and journalled as they finish; `timed` hears (kind of pass, item, seconds).

    Raises:
        RequestError: the checkpoint or the layer that the study names is not there.
        PhaseError: a hidden state is not finite, or a text does not fit in memory.
    """
    import numpy as np

    starts = range(0, len(texts), _SHARD)
    keys = {start: f"{_KIND}-{start // _SHARD:05d}" for start in starts}
    items = {key: _Item(key, tuple(texts[start : start + _SHARD])) for start, key in keys.items()}
    finished = journal.read()
    if not finished.keys() >= items.keys():
        check_lengths(task.before, "models.before", task.settings, texts)

    def done(key: str, result: dict[str, Any]) -> None:
        timed(_KIND, key, result.pop("seconds"))
        journal.append(key, result)

    run_items(
        functools.partial(_load, task),
        _work,
        {key: item for key, item in items.items() if key not in finished},
        execution=execution,
        done=done,
        progress=progress,
        description="attribute: activations of responses",
        already=len(finished.keys() & items.keys()),
    )
    return np.concatenate([states(task.items / f"{key}.safetensors") for key in items])


def _load(task: ContrastTask) -> _Bench:
    from datablame.models.blocks import decoder_blocks
    from datablame.models.load import load_model

    model = load_model(task.before, device=task.device, field="models.before")
    return _Bench(task, model, chosen_layer(task.settings, task.before, len(decoder_blocks(model))))


def _work(bench: _Bench, item: _Item) -> dict[str, Any]:
    from datablame.attribute.kernels.pooled import mean_hidden

    began = time.perf_counter()
    task = bench.task
    found = mean_hidden(bench.model, item.texts, bench.layer, task.settings.batch_tokens, responses_only=True)
    save(task.items / f"{item.key}.safetensors", {"activations": found}, f"the hidden states of {item.key}")
    return {"seconds": time.perf_counter() - began}
