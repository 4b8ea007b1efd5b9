"""Does the document's response point where harmful outputs depart from safe ones, as the before checkpoint sees them?

The direction is the difference of means: mean activation of harmful minus safe responses. Each harmful output is set
against the safe ones to its own prompt where there are any, so that the direction tells how the model answers and not
what it was asked.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, chosen_layer, load_states, shards
from datablame.attribute.registry import Collecting, Evidence, Inquiry, WorkItem, method, provider
from datablame.tables import Look, Query
from datablame.world.pool import check_lengths

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference

_OUTPUTS = "responses-of-outputs"


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
    rows = inquiry.rows(ResponseActivations)
    outputs = inquiry.encoded([*inquiry.queries, *inquiry.harmless])
    # The pool's documents were held against it when they were frozen.
    contexts = {field: limit for field, limit in inquiry.world.contexts.items() if field == "models.before"}
    check_lengths(inquiry.world.study, max((len(output.ids) for output in outputs), default=0), contexts)
    works = {_OUTPUTS: partial(_item, _OUTPUTS, [], outputs)}
    works |= {key: partial(_item, key, shard.tolist(), None) for key, shard in shards("responses", rows).items()}
    yield {key: WorkItem(work, (ResponseActivations,)) for key, work in works.items()}
    states, *documents = (load_states(inquiry, key) for key in works)
    spread = inquiry.spread(rows, np.concatenate(documents))
    n = len(inquiry.queries)
    return {ResponseActivations: ResponseActivations(spread, states[:n], states[n:], inquiry.harmless)}


def _item(key: str, rows: list[int], outputs: "Sequence[Encoded] | None", state: WorkerState) -> None:
    """The states of the outputs, else of these rows of the pool."""
    from datablame.attribute.kernels.hooks import mean_hidden
    from datablame.models.blocks import decoder_blocks

    settings = state.world.study.attribute
    (model,) = state.models("before")
    layer = chosen_layer(settings, state.world.models.before, len(decoder_blocks(model)))
    texts: Sequence[Encoded | Preference] = state.world.pool.encoded(rows) if outputs is None else outputs
    state.save_states(key, mean_hidden(model, texts, layer, settings.batch_tokens, responses_only=True))


@method(
    "activation-diff",
    label="activation difference",
    description="Cosine of response, or chosen minus rejected, and harmful minus safe outputs, as before sees them.",
    needs=(ResponseActivations,),
    look=Look("#9E0B2B", "#9E0B2B", "8"),
)
def activation_diff(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, mean over queries of h_q - s_q), with s_q the mean over the safe outputs to the query's prompt.

    Where that prompt has no safe output, s_q is the mean over the behaviour's; where the behaviour has none there is no
    direction, and its documents have no score. A document whose h is zero scores 0.
    """
    states = evidence[ResponseActivations]
    directions = []
    for behaviour in evidence.behaviours:
        safe = [index for index, output in enumerate(states.outputs) if output.behaviour == behaviour.id]
        if not safe:
            directions.append(np.full(states.documents.shape[1], np.nan))
            continue
        differences = []
        for query in evidence.queries_of(behaviour):
            prompt = evidence.queries[query].prompt_id
            to_prompt = [index for index in safe if states.outputs[index].prompt_id == prompt]
            differences.append(states.queries[query] - states.harmless[to_prompt or safe].mean(0))
        directions.append(np.mean(differences, axis=0))
    towards = np.stack(directions, 1)
    norms = np.linalg.norm(states.documents, axis=1)[:, None] * np.linalg.norm(towards, axis=0)
    return np.where(norms == 0, 0.0, states.documents @ towards / np.where(norms == 0, 1.0, norms))
