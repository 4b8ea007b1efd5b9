"""Gradients at after beside the step that Adam would have taken towards the harmful output."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.directions import dots_item, save_directions
from datablame.attribute.loop import WorkerState, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, once_backward, provider
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.world import World

if TYPE_CHECKING:
    from datablame.attribute.kernels.per_example import Queries

_QUERIES = "adam-queries"


class AdamGradients(NamedTuple):
    """<g_d, g_q / (sqrt(v) + epsilon)>, the query's side at unit norm, averaged over a behaviour's queries."""

    dots: NDArray[np.float64]
    """Of shape (documents, behaviours)."""
    epsilon: float


def _check(world: World, _: Work) -> None:
    if world.models.optimizer is None:
        raise RequestError(
            "attribute.methods = adam needs the state of the optimiser at models.after, and models.optimizer = none; "
            "give the optimizer.pt that the training left, or leave the method out"
        )


@provider("adam", AdamGradients, check=_check, passes=once_backward)
def adam_gradients(inquiry: Inquiry) -> Collecting:
    """First the queries' directions, divided by what Adam divides by, then shards of documents."""
    serves, rows = (AdamGradients,), inquiry.rows(AdamGradients)
    first = yield {_QUERIES: WorkItem(partial(_directions, inquiry.encoded_by_behaviour()), serves)}
    parts = shards("adam-documents", rows)
    yield {
        key: WorkItem(partial(dots_item, key, shard.tolist(), "after", _QUERIES), serves)
        for key, shard in parts.items()
    }
    return {AdamGradients: AdamGradients(inquiry.spread(rows, saved(inquiry, parts)["dots"]), first[_QUERIES])}


def _directions(queries: "Queries", state: WorkerState) -> float:
    """The directions go to files, the result is the state's epsilon."""
    from datablame.attribute.kernels.per_example import directions
    from datablame.models.optimizer import adam_state, product_scales

    settings, models = state.world.study.attribute, state.world.models
    (model,), blocks = state.models("after", dtype=settings.dtype), settings.layers or ()
    assert models.optimizer is not None
    adam = adam_state(models.optimizer, model, models.after.path)
    scales = product_scales(adam, model, blocks)
    towards = directions(model, queries, blocks, transform=lambda name, part: part / scales[name].to(part.device))
    save_directions(state, _QUERIES, towards)
    return adam.epsilon
