"""Loss gradients of single documents, compared with directions, exactly or after random projection, in one pass.

For a product y = x W^T the gradient of a document's loss is G^T A, a sum over its tokens t of the outer products of the
output's gradient G_t and the input A_t (Goodfellow 2015); an expert's is the sum over the tokens sent to it. Hooks
collect both; with frozen weights the backward pass computes nothing else, and it ends at the lowest of the chosen
blocks. A preference pair's loss is NLL(chosen) - NLL(rejected): its gradient is the same sum over the tokens of both
answers, G negated at those of the rejected one.

Projected, it becomes (G R)^T (A S) with R and S normal of variance 1/p, so that dot products keep their expectation
(Johnson and Lindenstrauss 1984; on both sides of a layer as in LoGra, Choe et al. 2024). Of L layers a document keeps
L p^2 numbers, and its cosine has a standard error of about 1 / (p sqrt(L)). An index keeps them in files that are named
by what they hold (`index_key`): studies with other behaviours or prompts make no pass over the same documents again.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.hooks import Deltas, Inputs, backward_with_hooks, in_batches, pooled_states_of
from datablame.attribute.rankings import rounded
from datablame.engine.files import digest
from datablame.errors import PhaseError
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import offload_device, ran_out_of_memory, to_float64, with_float64
from datablame.models.products import products
from datablame.seeds import generator
from datablame.stats.ranking import kendall, spearman

Blocks = Sequence[int]
Documents = Sequence[Encoded | Preference]
Queries = Sequence[Sequence[Encoded]]
"""The harmful outputs, grouped by behaviour."""
OfLayer = Float[Tensor, "behaviours outputs inputs"]
Directions = Mapping[str, OfLayer]
"""For each product the mean over a behaviour's queries of their unit gradients."""
Projection = Mapping[str, tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]]
"""For each layer what its output gradients (outputs, rows) and its inputs (inputs, columns) are multiplied with."""
Add = Callable[[Float[Tensor, "batch columns"], str, Inputs, Deltas, float], None]
"""Adds to a batch's rows what a layer has to say; the rest as a `ProductCallback` hears it."""
Contributions = tuple[Float[Tensor, "batch behaviours"], Float[Tensor, " batch"]]
"""To dot products and to squared norms."""

_INDEX_FORMAT = 1
_HELD_NUMBERS = 1 << 24
"""Gradients of single documents that are formed at a time hold at most this many numbers (or one document's)."""


class Similarities(NamedTuple):
    """Of every document: its gradient's dot products with the directions and norm, its loss (nats)."""

    dots: Float[Tensor, "documents behaviours"]
    norms: Float[Tensor, " documents"]
    losses: Float[Tensor, " documents"]
    states: Float[Tensor, "documents width"] = torch.zeros(0, 0)
    """Mean hidden states; without columns where no layer was asked for."""
    cosines: Float[Tensor, "documents others"] = torch.zeros(0, 0)
    """With a sketch's gradients; without columns where there is none."""


class Sketch(NamedTuple):
    """Many projected gradients of unit norm, which those of documents are compared with."""

    units: Float[Tensor, "others numbers"]
    sides: "Projection"


def query_gradient(model: Any, query: Encoded, blocks: Blocks) -> dict[str, Float[Tensor, "outputs inputs"]]:
    """The gradient of a query's mean NLL, by product."""
    gradient: dict[str, Tensor] = {}

    def add(name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
        gradient[name] = _formed(inputs, deltas)[0] / scale

    backward_with_hooks(model, [query], blocks, add)
    return gradient


def norm_over_layers(gradient: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """The norm of a gradient over all its parts together, summed in float64."""
    return torch.stack([to_float64(part).pow(2).sum().cpu() for part in gradient.values()]).sum().sqrt()


def directions(
    model: Any,
    queries: Queries,
    blocks: Blocks,
    other: Any | None = None,
    transform: Callable[[str, OfLayer], OfLayer] = lambda _, gradients: gradients,
    norms: Sequence[Sequence[float]] | None = None,
) -> Directions:
    """For each behaviour's queries the mean of their gradients, each scaled to unit norm over all layers together.

    `transform` turns a product's gradients, by its name, into others before they are scaled.

    With another checkpoint each query's gradient is averaged over both first. g is the gradient of a query's mean NLL
    at one checkpoint. Along the step d from before to after, the mean log-probability of the query's tokens changes by
    -<(g_after + g_before) / 2, d> (trapezoidal rule along the step: right up to the third power of d).

    With `norms` each query's gradient is divided by its number there, not by its own norm.
    """

    def gradient_of(query: Encoded) -> dict[str, Tensor]:
        gradient = query_gradient(model, query, blocks)
        if other is not None:
            for name, part in query_gradient(other, query, blocks).items():
                gradient[name] = gradient[name] + part.to(gradient[name].device) if name in gradient else part
        return {name: transform(name, part.unsqueeze(0))[0] for name, part in gradient.items()}

    compared = products(model, blocks)
    numbers = len(queries) * sum(product.size for product in compared.values())
    device = offload_device(4 * numbers, next(iter(compared.values())).device)
    means = {
        name: torch.zeros(len(queries), each.outputs, each.inputs, device=device) for name, each in compared.items()
    }
    for behaviour, of_behaviour in enumerate(queries):
        for number, query in enumerate(of_behaviour):
            gradient = gradient_of(query)
            norm = norm_over_layers(gradient) if norms is None else torch.tensor(norms[behaviour][number]).double()
            if norm > 0:
                for name, part in gradient.items():
                    means[name][behaviour] += (part / (norm * len(of_behaviour)).float().to(part.device)).to(device)
    return means


def similarities(
    model: Any,
    documents: Documents,
    towards: Directions,
    blocks: Blocks,
    batch_tokens: int,
    layer: int | None = None,
    sketch: Sketch | None = None,
) -> Similarities:
    """The gradient of each document's mean NLL over its response, compared with the directions; in document order.

    Of a preference pair it is the gradient, and the loss, of NLL(chosen) - NLL(rejected). Exact up to rounding and
    independent of the batches: no projection, no approximation. Mean hidden states of `layer` come out of the same
    forward pass. Cosines with the gradients of a sketch are as inexact as its projection. Raises PhaseError where a
    single document does not fit in memory.
    """
    behaviours, others = next(iter(towards.values())).shape[0], {} if sketch is None else _by_layer(sketch)

    def add(rows: Tensor, name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
        dots, squares = contributions(inputs, deltas, towards[name].to(inputs.device))
        rows[:, :behaviours].add_(dots, alpha=1 / scale)
        rows[:, behaviours].add_(squares, alpha=1 / scale**2)
        if sketch is not None:
            seen = _projected(inputs, deltas, sketch.sides[name]) @ others[name].T
            rows[:, behaviours + 1 :].add_(seen.to(rows), alpha=1 / scale)

    columns = [behaviours, 1, 0 if sketch is None else len(sketch.units)]
    rows, losses, states = per_example_pass(model, documents, blocks, batch_tokens, layer, sum(columns), add)
    dots, squares, seen = rows.split(columns, 1)
    norms = squares.squeeze(1).clamp_min(0).sqrt()
    return Similarities(dots, norms, losses, states, torch.where(norms[:, None] > 0, seen / norms[:, None], 0).float())


def _by_layer(sketch: Sketch) -> dict[str, Float[Tensor, "others numbers"]]:
    """Its columns of each product, on the product's device."""
    sizes = [out.shape[1] * into.shape[1] for out, into in sketch.sides.values()]
    parts = zip(sketch.sides.items(), sketch.units.split(sizes, 1), strict=True)
    return {name: part.to(out.device) for (name, (out, _)), part in parts}


def contributions(inputs: Inputs, deltas: Deltas, directions: OfLayer) -> Contributions:
    """What one layer adds to the dot products and to the squared norms.

    From the factors: <G^T A, Q> = sum_t (G_t Q) . A_t and ||G^T A||^2 = sum_{s,t} (A_s . A_t) (G_s . G_t), in
    K T O I + T^2 (I + O) multiplications; or from gradients formed for a few documents at a time, in
    (T + K + 1) O I. Whichever needs fewer.
    """
    batch, tokens, width_in = inputs.shape
    behaviours, width_out, _ = directions.shape
    size = width_in * width_out
    factored = behaviours * tokens * size + tokens**2 * (width_in + width_out)
    if factored < (tokens + behaviours + 1) * size:
        return _from_factors(inputs.float(), deltas.float(), directions)
    flat = directions.flatten(1)
    step = max(1, _HELD_NUMBERS // size)
    dots, norms = torch.empty(batch, behaviours, device=inputs.device), torch.empty(batch, device=inputs.device)
    for start in range(0, batch, step):
        part = slice(start, start + step)
        formed = _formed(inputs[part], deltas[part]).flatten(1)
        dots[part], norms[part] = formed @ flat.T, torch.linalg.vector_norm(formed, dim=1)
    return to_float64(dots), to_float64(norms).pow(2)


def _formed(inputs: Inputs, deltas: Deltas) -> Float[Tensor, "batch outputs inputs"]:
    """The gradients themselves, summed in float32: products of two numbers of 16 bits are exact in it."""
    if inputs.dtype is deltas.dtype is not torch.float32 and inputs.is_cuda:
        formed: Tensor = torch.bmm(deltas.transpose(1, 2), inputs, out_dtype=torch.float32)
        return formed
    return deltas.float().transpose(1, 2) @ inputs.float()


def _from_factors(inputs: Inputs, deltas: Deltas, directions: OfLayer) -> Contributions:
    """Dot products and squared norms without forming a gradient, the dots on the side of the narrower factor."""
    if directions.shape[1] <= directions.shape[2]:
        dots = [((inputs @ each.T) * deltas).sum((1, 2)) for each in directions]
    else:
        dots = [((deltas @ each) * inputs).sum((1, 2)) for each in directions]
    grams = (inputs @ inputs.transpose(1, 2)) * (deltas @ deltas.transpose(1, 2))
    stacked = torch.stack(dots, 1) if dots else inputs.new_zeros(len(inputs), 0)
    return to_float64(stacked), to_float64(grams.sum((1, 2)))


def per_example_pass(
    model: Any,
    documents: Documents,
    blocks: Blocks,
    batch_tokens: int,
    layer: int | None,
    columns: int,
    add: Add,
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[Float[Tensor, "documents columns"], Float[Tensor, " documents"], Float[Tensor, "documents width"]]:
    """Rows of `columns` numbers that `add` fills in a pass forward and backward, losses (nats), and mean hidden states.

    Of a preference pair loss and state are the chosen answer's less the rejected one's. The states of `layer` come out
    of the same pass and have no columns where none is asked for. Batches hold documents of like length. Each runs
    inside what `around` gives, which it leaves by an error where memory runs out: then it comes again, in halves.
    """
    rows = torch.zeros(len(documents), columns, dtype=torch.float64)
    losses = torch.zeros(len(documents), dtype=torch.float64)
    states = torch.zeros(len(documents), 0 if layer is None else model.config.get_text_config().hidden_size)
    device = with_float64(next(model.parameters()).device)
    sides_of = [answers(document) for document in documents]

    def work(indices: list[int]) -> None:
        batch = torch.zeros(len(indices), columns, dtype=torch.float64, device=device)
        every = [answer for side in zip(*(sides_of[index] for index in indices), strict=True) for answer in side]

        def difference(sides: Tensor) -> Tensor:
            """What the chosen answers have more than the rejected ones; of single documents what they have."""
            chosen: Tensor
            chosen, *rejected = sides.cpu().split(len(indices))
            return chosen.sub(rejected[0]) if rejected else chosen

        def joined(name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
            if len(every) > len(indices):
                # A pair is one row: the rejected answer's tokens follow the chosen one's, the sign of the loss turned.
                up, down = deltas.chunk(2)
                inputs, deltas = torch.cat(inputs.chunk(2), 1), torch.cat([up, -down], 1)
            add(batch, name, inputs, deltas, scale)

        def hear(hidden: Tensor) -> None:
            states[indices] = difference(hidden[:, 0, 0])

        states_heard = (
            contextlib.nullcontext() if layer is None else pooled_states_of(model, [layer], ["mean"], every, hear)
        )
        with around(), states_heard:
            batch_losses = backward_with_hooks(model, every, blocks, joined)
        rows[indices], losses[indices] = batch.cpu(), difference(batch_losses)

    spans = [len(sides) * max(len(answer.ids) for answer in sides) for sides in sides_of]
    for number in (1, 2):
        in_batches(spans, batch_tokens, work, [index for index, sides in enumerate(sides_of) if len(sides) == number])
    return rows, losses, states


class Projected(NamedTuple):
    """Of every document: its projected gradient at unit norm, that norm, its loss (nats), its mean hidden state."""

    units: Float[Tensor, "documents numbers"]
    norms: Float[Tensor, " documents"]
    losses: Float[Tensor, " documents"]
    states: Float[Tensor, "documents width"]


def projection_of(model: Any, blocks: Blocks, size: int) -> Projection:
    """The matrices of the chosen blocks, the same in every study; a side no wider than `size` is left as it is."""
    compared = products(model, blocks).items()
    return {name: projection_sides(name, each.outputs, each.inputs, size, each.device) for name, each in compared}


def projection_sides(
    name: str, outputs: int, inputs: int, size: int, device: torch.device
) -> tuple[Float[Tensor, "outputs _"], Float[Tensor, "inputs _"]]:
    """What the outputs and the inputs of one matrix are multiplied with; its name is the key of their stream."""

    def matrix(width: int, side: str) -> Tensor:
        if width <= size:
            return torch.eye(width, device=device)
        noise = generator("projection", f"{name} {side}", size).standard_normal((width, size), dtype=np.float32)
        scaled: Tensor = torch.from_numpy(noise) / size**0.5
        return scaled.to(device)

    return matrix(outputs, "outputs"), matrix(inputs, "inputs")


def projected(
    model: Any, documents: Documents, projection: Projection, blocks: Blocks, batch_tokens: int, layer: int
) -> Projected:
    """Each document's projected gradient, kept in float16 at unit norm, with what else the pass tells."""
    columns, numbers = dict[str, slice](), 0
    for name, (out, into) in projection.items():
        columns[name] = slice(numbers, numbers := numbers + out.shape[1] * into.shape[1])

    def add(rows: Tensor, name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
        rows[:, columns[name]] += _projected(inputs, deltas, projection[name]).to(rows.device) / scale

    gradients, losses, states = per_example_pass(model, documents, blocks, batch_tokens, layer, numbers, add)
    norms = torch.linalg.vector_norm(gradients, dim=1)
    units = torch.where(norms[:, None] > 0, gradients / norms[:, None], 0).to(torch.float16)
    return Projected(units, norms, losses, states)


def _projected(inputs: Inputs, deltas: Deltas, sides: tuple[Tensor, Tensor]) -> Float[Tensor, "batch numbers"]:
    out, into = sides
    return ((deltas.float() @ out).transpose(1, 2) @ (inputs.float() @ into)).flatten(1)


def projected_directions(directions: Directions, projection: Projection) -> Float[Tensor, "behaviours numbers"]:
    """The same projection of what documents are compared with."""
    sides = projection.items()
    return torch.cat([(o.T @ directions[name].to(o.device) @ i).flatten(1).cpu() for name, (o, i) in sides], 1)


def compared(
    documents: Projected, towards: Float[Tensor, "behaviours numbers"], sketch: Sketch | None = None
) -> Similarities:
    """What `similarities` gives, up to the error of the projection; no model is needed."""
    units = documents.units.float()
    dots, cosines = (units @ towards.T).double() * documents.norms[:, None], torch.zeros(len(units), 0)
    if sketch is not None:
        cosines = units @ sketch.units.T
    return Similarities(dots, documents.norms, documents.losses, documents.states, cosines)


def weights_digest(model: Any) -> str:
    """The SHA-256 of all weights with their names, shapes and types."""
    digested = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digested.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digested.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digested.hexdigest()


def index_key(weights: str, blocks: Blocks, layer: int, size: int, documents: Documents) -> str:
    """What projected gradients depend on: the batches that they were made in change them by rounding only."""
    tokens = [[[each.prompt_tokens, *each.ids] for each in answers(document)] for document in documents]
    return digest([_INDEX_FORMAT, weights, list(blocks), layer, size, tokens])


def agreement_with_exact(
    model: Any, approximate: Similarities, documents: Documents, queries: Queries, blocks: Blocks, batch_tokens: int
) -> dict[str, Any]:
    """Kendall's tau-b and Spearman's rho of the rounded cosines, a number a behaviour, and their largest difference.

    Exact is the comparison in float32 without projection; the weights are widened for it and narrowed again, which
    loses nothing. Where they do not fit in memory so, there is only `why_not`. A coefficient is None where one side
    ranks all documents alike.
    """
    if any(weight.is_meta for weight in model.parameters()):
        return {"documents": len(documents), "why_not": "some weights are kept off the device"}
    kind = model.dtype
    try:
        exact = similarities(model.float(), documents, directions(model, queries, blocks), blocks, batch_tokens)
    except (PhaseError, MemoryError, RuntimeError) as error:
        if not isinstance(error, PhaseError) and not ran_out_of_memory(error):
            raise
        return {"documents": len(documents), "why_not": "the weights do not fit in memory as float32"}
    finally:
        model.to(kind)
    pair, n = (approximate, exact), len(queries)
    ours, theirs = (torch.where(s.norms[:, None] > 0, s.dots[:, :n] / s.norms[:, None], 0) for s in pair)
    pairs = [(rounded(a), rounded(b)) for a, b in zip(ours.T.numpy(), theirs.T.numpy(), strict=True)]
    coefficients = {
        name: [value if math.isfinite(value := of(*pair)) else None for pair in pairs]
        for name, of in (("kendall", kendall), ("spearman", spearman))
    }
    return {"documents": len(documents), **coefficients, "largest_difference": float((ours - theirs).abs().max())}
