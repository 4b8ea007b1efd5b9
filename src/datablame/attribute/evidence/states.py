"""Hidden states at `attribute.checkpoint`, pooled in other ways than over all tokens: one pass for all of these."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, chosen_layer, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider
from datablame.models.chat import Encoded
from datablame.tables import Query
from datablame.world.pool import check_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from datablame.attribute.kernels.hooks import Pooling
    from datablame.attribute.kernels.per_example import Documents


class LastTokenActivations(NamedTuple):
    """States of the last token of documents and of queries, a row each: the end of the turn where the text has it."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]


class ResponseMeanActivations(NamedTuple):
    """States averaged over the response's tokens of documents and of queries, a row each."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]


_POOLINGS: "dict[type, Pooling]" = {LastTokenActivations: "last", ResponseMeanActivations: "response"}


@provider("states", *_POOLINGS)
def states(inquiry: Inquiry) -> Collecting:
    """Queries and documents at `attribute.activation_layer`, in the poolings that a method asks for."""
    kinds = tuple(kind for kind in _POOLINGS if kind in inquiry.needs)
    poolings = [_POOLINGS[kind] for kind in kinds]
    rows, n = inquiry.rows(*kinds), len(inquiry.queries)
    works: dict[str, partial[None]] = {
        "states-of-queries": partial(_item, [], encoded_outputs(inquiry, inquiry.queries))
    }
    works |= {key: partial(_item, shard.tolist(), None) for key, shard in shards("states", rows).items()}
    yield {key: WorkItem(partial(work, poolings, key), kinds) for key, work in works.items()}
    arrays = saved(inquiry, works)
    parts = {kind: np.split(arrays[pooling], [n]) for kind, pooling in zip(kinds, poolings, strict=True)}
    return {kind: kind(inquiry.spread(rows, documents), queries) for kind, (queries, documents) in parts.items()}


def _item(
    rows: list[int], outputs: Sequence[Encoded] | None, poolings: "Sequence[Pooling]", key: str, state: WorkerState
) -> None:
    """The states of the outputs, else of these rows of the pool."""
    texts = state.world.pool.encoded(rows) if outputs is None else outputs
    model, layer, _ = model_and_layer(state)
    pooled = pooled_states(state, model, texts, [layer], poolings)
    parts = {str(pooling): pooled[:, 0, number] for number, pooling in enumerate(poolings)}
    save(state.folder / f"{key}.safetensors", parts, f"the hidden states of {key}")


def encoded_outputs(inquiry: Inquiry, outputs: Sequence[Query]) -> list[Encoded]:
    """The outputs' tokens; RequestError where one is longer than the context of `attribute.checkpoint`."""
    encoded = inquiry.encoded(outputs)
    # The pool's documents were held against it when they were frozen.
    field = f"models.{inquiry.world.study.attribute.checkpoint}"
    contexts = {name: limit for name, limit in inquiry.world.contexts.items() if name == field}
    check_lengths(inquiry.world.study, max((len(output.ids) for output in encoded), default=0), contexts)
    return encoded


def model_and_layer(state: WorkerState) -> tuple[Any, int, int]:
    """The checkpoint that the study attributes at, its layer to compare at, and how many blocks it has."""
    from datablame.models.blocks import decoder_blocks

    settings = state.world.study.attribute
    (model,) = state.models(settings.checkpoint, dtype=settings.dtype)
    n = len(decoder_blocks(model))
    return model, chosen_layer(state.world, settings.checkpoint, n), n


def pooled_states(
    state: WorkerState, model: Any, texts: "Documents", layers: Sequence[int], poolings: "Sequence[Pooling]"
) -> "Tensor":
    """States of shape (texts, layers, poolings, width)."""
    from datablame.attribute.kernels.hooks import pooled_hidden

    return pooled_hidden(model, texts, layers, poolings, state.world.study.attribute.batch_tokens)
