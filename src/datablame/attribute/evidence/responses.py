"""Mean hidden states of responses as the before checkpoint sees them: of documents, of harmful and safe outputs."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, chosen_layer, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider
from datablame.models.chat import Encoded
from datablame.tables import Query
from datablame.world.pool import check_lengths


class ResponseActivations(NamedTuple):
    """Mean hidden states of responses at the before checkpoint, a row each; of a pair chosen minus rejected."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]
    harmless: NDArray[np.float64]
    """Of the outputs `outputs`."""
    outputs: Sequence[Query]


@provider("responses", ResponseActivations)
def response_activations(inquiry: Inquiry) -> Collecting:
    """One pass of the before checkpoint over responses: of documents, of harmful and of safe outputs."""
    rows = inquiry.rows(ResponseActivations)
    outputs = inquiry.encoded([*inquiry.queries, *inquiry.harmless])
    # The pool's documents were held against it when they were frozen.
    contexts = {field: limit for field, limit in inquiry.world.contexts.items() if field == "models.before"}
    check_lengths(inquiry.world.study, max((len(output.ids) for output in outputs), default=0), contexts)
    works = {"responses-of-outputs": partial(_item, [], outputs)}
    works |= {key: partial(_item, shard.tolist(), None) for key, shard in shards("responses", rows).items()}
    yield {key: WorkItem(partial(work, key), (ResponseActivations,)) for key, work in works.items()}
    ends = [len(inquiry.queries), len(outputs)]
    queries, harmless, documents = np.split(saved(inquiry, works)["states"], ends)
    about = (inquiry.spread(rows, documents), queries, harmless, inquiry.harmless)
    return {ResponseActivations: ResponseActivations(*about)}


def _item(rows: list[int], outputs: Sequence[Encoded] | None, key: str, state: WorkerState) -> None:
    """The states of the outputs, else of these rows of the pool."""
    from datablame.attribute.kernels.hooks import pooled_hidden
    from datablame.models.blocks import decoder_blocks

    settings = state.world.study.attribute
    (model,) = state.models("before")
    layer = chosen_layer(state.world, "before", len(decoder_blocks(model)))
    texts = state.world.pool.encoded(rows) if outputs is None else outputs
    states = pooled_hidden(model, texts, [layer], ["response"], settings.batch_tokens)[:, 0, 0]
    save(state.folder / f"{key}.safetensors", {"states": states}, f"the hidden states of {key}")
