"""Does the document's response point where harmful outputs depart from safe ones, as the before checkpoint sees them?

The direction is the mean activation of harmful minus safe responses. Each harmful output is set against the safe ones
to its own prompt where there are any, so that it tells how the model answers and not what it was asked.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, chosen_layer, save, saved, shards
from datablame.attribute.registry import Collecting, Evidence, Inquiry, WorkItem, method, provider
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
    """One pass of the before checkpoint over responses: of documents, of queries, of harmless outputs beside them."""
    rows, n = inquiry.rows(ResponseActivations), len(inquiry.queries)
    outputs = inquiry.encoded([*inquiry.queries, *inquiry.harmless])
    # The pool's documents were held against it when they were frozen.
    contexts = {field: limit for field, limit in inquiry.world.contexts.items() if field == "models.before"}
    check_lengths(inquiry.world.study, max((len(output.ids) for output in outputs), default=0), contexts)
    works = {"responses-of-outputs": partial(_item, [], outputs)}
    works |= {key: partial(_item, shard.tolist(), None) for key, shard in shards("responses", rows).items()}
    yield {key: WorkItem(partial(work, key), (ResponseActivations,)) for key, work in works.items()}
    queries, harmless, documents = np.split(saved(inquiry, works)["states"], [n, len(outputs)])
    spread = inquiry.spread(rows, documents)
    return {ResponseActivations: ResponseActivations(spread, queries, harmless, inquiry.harmless)}


def _item(rows: list[int], outputs: Sequence[Encoded] | None, key: str, state: WorkerState) -> None:
    """The states of the outputs, else of these rows of the pool."""
    from datablame.attribute.kernels.hooks import mean_hidden
    from datablame.models.blocks import decoder_blocks

    settings = state.world.study.attribute
    (model,) = state.models("before")
    layer = chosen_layer(state.world, "before", len(decoder_blocks(model)))
    texts = state.world.pool.encoded(rows) if outputs is None else outputs
    states = mean_hidden(model, texts, layer, settings.batch_tokens, responses_only=True)
    save(state.folder / f"{key}.safetensors", {"states": states}, f"the hidden states of {key}")


@method("activation-diff", needs=(ResponseActivations,))
def activation_diff(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, mean over queries of h_q - s_q), with s_q the mean over the safe outputs to the query's prompt.

    Where that prompt has no safe output, s_q is the mean over the behaviour's; where the behaviour has none there is no
    direction, and its documents have no score. A document whose h is zero scores 0.
    """
    states = evidence[ResponseActivations]
    directions = []
    for behaviour in evidence.behaviours:
        safe = [index for index, output in enumerate(states.outputs) if output.behaviour == behaviour.id]
        differences = []
        for query in evidence.queries_of(behaviour) if safe else []:
            prompt = evidence.queries[query].prompt_id
            to_prompt = [index for index in safe if states.outputs[index].prompt_id == prompt]
            differences.append(states.queries[query] - states.harmless[to_prompt or safe].mean(0))
        undefined = [np.full(states.documents.shape[1], np.nan)]
        directions.append(np.mean(differences or undefined, axis=0))
    towards = np.stack(directions, 1)
    norms = np.linalg.norm(states.documents, axis=1)[:, None] * np.linalg.norm(towards, axis=0)
    return np.where(norms == 0, 0.0, states.documents @ towards / np.where(norms == 0, 1.0, norms))
