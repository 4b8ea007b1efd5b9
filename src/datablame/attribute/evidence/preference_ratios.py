"""How much likelier the before checkpoint finds the chosen answer of a preference pair than the rejected one."""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.models.chat import Preference
from datablame.world import World
from datablame.world.ingest import are_pairs


class ReferenceRatios(NamedTuple):
    """The pairs' log-ratios at before, in nats a token: mean log p of the chosen answer less that of the rejected."""

    ratios: NDArray[np.float64]
    beta: float
    """Of the DPO loss whose reference before is."""


def _check(world: World, _: Work) -> None:
    """RequestError where the pool is known to have documents of one answer."""
    if are_pairs(world) is False:
        raise RequestError(
            f"attribute.methods = gradient-dpo compares the answers of preference pairs, and data.path = "
            f"{world.data.path} has none; remove the method, or choose a pool of pairs"
        )


@provider("preference-ratios", ReferenceRatios, check=_check)
def reference_ratios(inquiry: Inquiry) -> Collecting:
    """One pass of the before checkpoint over both answers of the pairs."""
    rows = inquiry.rows(ReferenceRatios)
    items = {
        key: WorkItem(partial(_item, key, shard.tolist()), (ReferenceRatios,))
        for key, shard in shards("preference-ratios", rows).items()
    }
    yield items
    ratios = inquiry.spread(rows, saved(inquiry, items)["ratios"])
    return {ReferenceRatios: ReferenceRatios(ratios, inquiry.world.study.attribute.beta)}


def _item(key: str, rows: list[int], state: WorkerState) -> None:
    """The log-ratios of these rows of the pool, in the type of weights that gradients are taken in."""
    import torch

    from datablame.attribute.kernels.hooks import in_batches
    from datablame.models.likelihood import log_ratios

    settings = state.world.study.attribute
    (model,) = state.models("before", dtype=settings.dtype)
    pairs = [pair for pair in state.world.pool.encoded(rows) if isinstance(pair, Preference)]
    ratios = torch.zeros(len(pairs), dtype=torch.float64)

    def work(indices: list[int]) -> None:
        ratios[indices] = log_ratios(model, [pairs[index] for index in indices]).double().cpu()

    spans = [2 * max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in pairs]
    with torch.no_grad():
        in_batches(spans, settings.batch_tokens, work)
    save(state.folder / f"{key}.safetensors", {"ratios": ratios}, f"the log-ratios of {key}")
