"""Does the document repeat itself? The type-token ratio, from the tokens that the model sees."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from datablame.attribute.loop import WorkerState, shards
from datablame.attribute.registry import Collecting, Evidence, Inquiry, WorkItem, method, provider
from datablame.models.chat import answers


class TypeTokenRatios(NamedTuple):
    """Different tokens over tokens, a number for each document."""

    ratios: Any


@provider("type-token-ratios", TypeTokenRatios)
def type_token_ratios(inquiry: Inquiry) -> Collecting:
    """One stage of items; an item carries row numbers, its worker reads their tokens."""
    rows = inquiry.rows(TypeTokenRatios)
    items = {
        key: WorkItem(partial(ratios_of, shard.tolist()), serves=(TypeTokenRatios,))
        for key, shard in shards("type-token-ratios", rows).items()
    }
    results = yield items
    ratios = np.array([ratio for key in items for ratio in results[key]])
    return {TypeTokenRatios: TypeTokenRatios(inquiry.spread(rows, ratios))}


def ratios_of(rows: list[int], state: WorkerState) -> list[float]:
    """The work on an item: plain JSON, which the journal keeps."""
    tokens = [answers(document)[0].ids for document in state.world.pool.encoded(rows)]
    return [len(set(ids)) / len(ids) for ids in tokens]


@method(
    "repetition",
    label="repetition (control)",
    description="Control: the share of the document's tokens that it has said before; looks at no behaviour.",
    cost="words",
    reference="Johnson, Studies in language behavior, 1944",
    needs=(TypeTokenRatios,),
    control=True,
)
def repetition(evidence: Evidence) -> Any:
    """1 - types / tokens, the same for every behaviour."""
    ratios = evidence[TypeTokenRatios].ratios
    evidence.report("mean type-token ratio", float(ratios.mean()))
    return evidence.for_every_behaviour(1 - ratios)
