"""Gradients at before, at the intermediate checkpoints and at after, added up as training took them: TracIn.

A query's gradients at all checkpoints, each times the root of its learning rate, are one vector, which is scaled to
unit norm; a checkpoint where the query's gradient is small stays small beside the others.
"""

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.directions import dots_item, save_directions
from datablame.attribute.loop import Checkpoint, WorkerState, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, Passes, WorkItem, provider
from datablame.config.schema import Models
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.world import World

if TYPE_CHECKING:
    from datablame.attribute.kernels.per_example import Queries


class CheckpointGradients(NamedTuple):
    """sum_t eta_t <g_t(d), g_t(q)>, q's side at unit norm over all checkpoints, averaged over a behaviour's queries."""

    dots: NDArray[np.float64]
    """Of shape (documents, behaviours)."""
    learning_rates: tuple[float, ...]
    """eta_t, of before, the intermediate checkpoints and after."""


def _check(world: World, _: Work) -> None:
    if not world.models.checkpoints:
        raise RequestError(
            "attribute.methods = tracin needs checkpoints of the training between before and after, and "
            "models.checkpoints = none; list them with path and learning_rate, or leave the method out"
        )


def _passes(world: World, _: Collection[type]) -> Passes:
    return Passes(backward=len(world.models.checkpoints) + 2)


@provider("checkpoints", CheckpointGradients, check=_check, passes=_passes)
def checkpoint_gradients(inquiry: Inquiry) -> Collecting:
    """First the norms of the queries at every checkpoint, then their directions there, then shards of documents."""
    serves, queries = (CheckpointGradients,), inquiry.encoded_by_behaviour()
    rates = learning_rates(inquiry.world.models)
    places = {f"checkpoints-{number}": at for number, at in enumerate(rates)}
    squares = yield {f"{name}-norms": WorkItem(partial(_norms, at, queries), serves) for name, at in places.items()}
    total = np.array([rates[at] * np.concatenate(squares[f"{name}-norms"]) ** 2 for name, at in places.items()]).sum(0)
    borders = np.cumsum([len(each) for each in queries])[:-1]
    norms = [each.tolist() for each in np.split(np.sqrt(total), borders)]
    yield {
        f"{name}-queries": WorkItem(partial(_directions, name, at, queries, norms), serves)
        for name, at in places.items()
    }
    rows = inquiry.rows(CheckpointGradients)
    parts = {name: [*shards(f"{name}-documents", rows).items()] for name in places}
    yield {
        key: WorkItem(partial(dots_item, key, shard.tolist(), at, name), serves)
        for name, at in places.items()
        for key, shard in parts[name]
    }
    weighted = [rates[at] * saved(inquiry, [key for key, _ in parts[name]])["dots"] for name, at in places.items()]
    return {CheckpointGradients: CheckpointGradients(inquiry.spread(rows, np.sum(weighted, 0)), tuple(rates.values()))}


def learning_rates(models: Models) -> dict[Checkpoint, float]:
    """What each checkpoint weighs, in the order of training; an end weighs as the intermediate one next to it."""
    between: dict[Checkpoint, float] = {n: each.learning_rate for n, each in enumerate(models.checkpoints)}
    rates = [*between.values()]
    return {"before": rates[0], **between, "after": rates[-1]}


def _norms(at: Checkpoint, queries: "Queries", state: WorkerState) -> list[list[float]]:
    """The norm of each query's gradient at a checkpoint."""
    from datablame.attribute.kernels.per_example import norm_over_layers, query_gradient

    settings = state.world.study.attribute
    (model,), blocks = state.models(at, dtype=settings.dtype), settings.layers or ()
    return [[float(norm_over_layers(query_gradient(model, query, blocks))) for query in own] for own in queries]


def _directions(name: str, at: Checkpoint, queries: "Queries", norms: list[list[float]], state: WorkerState) -> None:
    """The mean of each behaviour's gradients at a checkpoint, every query's divided by its norm over all of them."""
    from datablame.attribute.kernels.per_example import directions

    settings = state.world.study.attribute
    (model,) = state.models(at, dtype=settings.dtype)
    save_directions(state, name, directions(model, queries, settings.layers or (), norms=norms))
