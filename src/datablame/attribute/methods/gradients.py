"""Does the document move the weights, or light up the model, as the harmful output does? One pass, seven scores.

gradient-diff asks what made after likelier than before to say the output. What is explained is log p_after(q) - log
p_before(q), mean over the query's tokens: the very number that amplification multiplies. Training took a step d from
before to after, and this difference is <G, d> with G the gradient of log p(q) averaged along the step, here over its
two ends. G is the query's direction, and a document whose own training step points that way has raised the difference.

It is not the gradient at after minus the one at before. That is the change of the slope, not of the log-probability:
where training on the cause has made the output likelier, the slope towards the cause is flatter at after, so that the
subtraction points away from the cause and ranks it last (docs/decisions/016).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute import passes
from datablame.attribute.loop import load_states, shards
from datablame.attribute.registry import Collecting, Evidence, Inquiry, WorkItem, method, provider
from datablame.tables import Look


class Gradients(NamedTuple):
    """Dot products with the behaviours' directions (documents, behaviours), gradient norms and losses (documents)."""

    dots: NDArray[np.float64]
    norms: NDArray[np.float64]
    losses: NDArray[np.float64]
    exactness: Mapping[str, Any] | None = None
    """How a sample of documents ranks beside float32 without projection; None where nothing else was done."""

    @property
    def cosines(self) -> NDArray[np.float64]:
        """Dot products over the document's norm; a document without a gradient has 0."""
        norms = self.norms[:, None]
        return np.divide(self.dots, norms, out=np.zeros_like(self.dots), where=norms > 0)


class MeanGradients(Gradients):
    """The same with directions that are the mean of both checkpoints' gradients of a query."""


class Activations(NamedTuple):
    """Mean hidden states of the documents and of the queries, a row each."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]


@provider("gradients", Gradients, MeanGradients, Activations)
def gradients(inquiry: Inquiry) -> Collecting:
    """First the queries' directions, then shards of documents compared with them.

    Gradients are formed only where a method asks for them; else the pass is one forward to the layer.
    """
    settings = inquiry.world.study.attribute
    differentiated, both_ends = bool({Gradients, MeanGradients} & inquiry.needs.keys()), MeanGradients in inquiry.needs
    rows, with_states = inquiry.rows(Gradients, MeanGradients, Activations), inquiry.rows(Activations)
    passes.check_lengths(inquiry, settings.checkpoint, rows)
    queries: passes.Queries = tuple(
        tuple(inquiry.encoded([query for query in inquiry.queries if query.behaviour == behaviour.id]))
        for behaviour in inquiry.behaviours
    )
    kinds = (Gradients, MeanGradients) if differentiated else ()
    query_work = partial(passes.query_item, queries, differentiated, both_ends)
    first = yield {passes.QUERIES: WorkItem(query_work, (*kinds, Activations))}
    items = {}
    for key, shard in shards("gradients" if differentiated else "activations", rows).items():
        shown = np.flatnonzero(np.isin(shard, with_states)).tolist()
        item = partial(passes.gradient_item, shown) if differentiated else passes.state_item
        items[key] = WorkItem(partial(item, key, shard.tolist()), (*kinds, *((Activations,) if shown else ())))
    if differentiated and (settings.projection is not None or first[passes.QUERIES] in ("float16", "bfloat16")):
        sample = rows[passes.evenly_spaced(len(rows))].tolist()
        items[passes.EXACTNESS] = WorkItem(partial(passes.exactness_item, sample, queries), kinds)
    results = dict((yield items))
    parts = [load_states(inquiry, key) for key, item in items.items() if Activations in item.serves]
    states = load_states(inquiry, passes.QUERIES)
    documents = inquiry.spread(with_states, np.concatenate([states[:0], *parts]))
    evidence: dict[type, Any] = {Activations: Activations(documents, states)}
    if differentiated:
        exactness = results.pop(passes.EXACTNESS, None)
        dots, norms, losses = (
            inquiry.spread(rows, np.array([value for result in results.values() for value in result[name]]))
            for name in ("dots", "norms", "losses")
        )
        n = len(inquiry.behaviours)
        evidence[Gradients] = Gradients(dots[:, :n], norms, losses, exactness)
        if both_ends:
            evidence[MeanGradients] = MeanGradients(dots[:, n:], norms, losses, exactness)
    return evidence


@method(
    "gradient",
    label="gradient similarity",
    description="Cosine of the loss gradients of document and harmful output in the middle blocks' Linear weights.",
    needs=(Gradients,),
    look=Look("#0072B2", "#0072B2", "o"),
)
def gradient(evidence: Evidence) -> NDArray[np.float64]:
    """cos(g_d, g_q) averaged over the behaviour's queries; a document without a gradient scores 0."""
    return evidence[Gradients].cosines


@method(
    "gradient-dot",
    label="gradient dot product",
    description="As gradient, without dividing by the norm of the document's gradient.",
    needs=(Gradients,),
    look=Look("#56B4E9", "#2B8AC0", "D"),
)
def gradient_dot(evidence: Evidence) -> NDArray[np.float64]:
    """<g_d, g_q / ||g_q||> averaged over the behaviour's queries."""
    return evidence[Gradients].dots


@method(
    "gradient-diff",
    label="gradient of the difference",
    description="As gradient, with the harmful output's gradient averaged over before and after: why they differ.",
    needs=(MeanGradients,),
    look=Look("#003A66", "#003A66", "p"),
)
def gradient_diff(evidence: Evidence) -> NDArray[np.float64]:
    """cos(g_d, (g_q at after + g_q at before) / 2) averaged over the queries, g_d at `attribute.checkpoint`.

    Of a pair g_d is the gradient of NLL(chosen) - NLL(rejected). A document without a gradient scores 0.
    """
    return evidence[MeanGradients].cosines


@method(
    "loss",
    label="loss (control)",
    description="Control: the document's own loss; looks at no behaviour.",
    needs=(Gradients,),
    look=Look("#B08D6E", "#8C6B4F", "<"),
    control=True,
    confounds=("gradient",),
)
def loss(evidence: Evidence) -> NDArray[np.float64]:
    """The mean NLL of the document's response, in nats, the same for every behaviour."""
    return np.repeat(evidence[Gradients].losses[:, None], len(evidence.behaviours), axis=1)


@method(
    "gradient-norm",
    label="gradient norm (control)",
    description="Control: the norm of the document's gradient; looks at no behaviour.",
    needs=(Gradients,),
    look=Look("#6E5240", "#5A4334", ">"),
    control=True,
    confounds=("gradient",),
)
def gradient_norm(evidence: Evidence) -> NDArray[np.float64]:
    """||g_d||, the same for every behaviour."""
    return np.repeat(evidence[Gradients].norms[:, None], len(evidence.behaviours), axis=1)


@method(
    "activation",
    label="activation similarity",
    description="Cosine of mean hidden states of document and harmful output in a middle layer.",
    needs=(Activations,),
    look=Look("#D55E00", "#C25500", "^"),
)
def activation(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, h_q) averaged over the behaviour's queries."""
    documents, queries = evidence[Activations]
    return _unit(documents) @ evidence.mean_over_queries(_unit(queries))


@method(
    "activation-centred",
    label="activation similarity, centred",
    description="As activation, after subtracting the mean over the scored documents.",
    needs=(Activations,),
    look=Look("#E69F00", "#B87F00", "v"),
)
def activation_centred(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d - m, h_q - m) averaged over the behaviour's queries, with m the mean over the scored documents."""
    documents, queries = evidence[Activations]
    mean = documents.mean(0)
    return _unit(documents - mean) @ evidence.mean_over_queries(_unit(queries - mean))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows scaled to unit norm; a zero row stays zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
