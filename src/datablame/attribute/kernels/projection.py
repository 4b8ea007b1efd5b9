"""Gradients after random projection: approximate, small enough to keep, so that later queries need no model.

A layer's gradient G^T A becomes (G R)^T (A S) with R and S normal of variance 1/p, so that dot products keep their
expectation (Johnson and Lindenstrauss 1984; on both sides of a layer as in LoGra, Choe et al. 2024). Of L layers a
document keeps L p^2 numbers, and its cosine has a standard error of about 1 / (p sqrt(L)).

An index keeps them in files that are named by what they hold: the hash of the weights, the layers, the projection and
the documents' tokens. Another study with other behaviours, prompts or samples makes no pass over the same documents.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels import per_example
from datablame.attribute.kernels.hooks import linears
from datablame.attribute.kernels.per_example import Blocks, Directions, Documents, Queries, Similarities
from datablame.attribute.rankings import rounded
from datablame.engine.files import digest
from datablame.errors import PhaseError
from datablame.models.chat import answers
from datablame.models.device import ran_out_of_memory
from datablame.seeds import generator
from datablame.stats.ranking import kendall, spearman

_INDEX_FORMAT = 1

Projection = Mapping[str, tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]]
"""For each layer what its output gradients (outputs, rows) and its inputs (inputs, columns) are multiplied with."""


class Projected(NamedTuple):
    """Of every document: its projected gradient at unit norm, that norm, its loss (nats), its mean hidden state."""

    units: Float[Tensor, "documents numbers"]
    norms: Float[Tensor, " documents"]
    losses: Float[Tensor, " documents"]
    states: Float[Tensor, "documents width"]


def projection_of(model: Any, blocks: Blocks, size: int) -> Projection:
    """The matrices of the chosen blocks, the same in every study; a side no wider than `size` is left as it is."""

    def matrix(width: int, side: str, device: torch.device) -> Tensor:
        noise = generator("projection", side, size).standard_normal((width, size), dtype=np.float32)
        return torch.eye(width, device=device) if width <= size else torch.from_numpy(noise).to(device) / size**0.5

    sides = {}
    for name, layer in linears(model, blocks).items():
        out, into, device = layer.out_features, layer.in_features, layer.weight.device
        sides[name] = matrix(out, f"{name} outputs", device), matrix(into, f"{name} inputs", device)
    return sides


def projected(
    model: Any, documents: Documents, projection: Projection, blocks: Blocks, batch_tokens: int, layer: int
) -> Projected:
    """Each document's projected gradient, kept in float16 at unit norm, with what else the pass tells."""
    columns, numbers = dict[str, slice](), 0
    for name, (out, into) in projection.items():
        columns[name] = slice(numbers, numbers := numbers + out.shape[1] * into.shape[1])

    def add(rows: Tensor, name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
        out, into = projection[name]
        formed = (deltas.float() @ out).transpose(1, 2) @ (inputs.float() @ into)
        rows[:, columns[name]] += formed.flatten(1).to(rows.device) / scale

    found = per_example.per_example_pass(model, documents, blocks, batch_tokens, layer, numbers, add)
    gradients, losses, states = found
    norms = torch.linalg.vector_norm(gradients, dim=1)
    units = torch.where(norms[:, None] > 0, gradients / norms[:, None], 0).to(torch.float16)
    return Projected(units, norms, losses, states)


def projected_directions(directions: Directions, projection: Projection) -> Float[Tensor, "behaviours numbers"]:
    """The same projection of what documents are compared with."""
    sides = projection.items()
    return torch.cat([(o.T @ directions[name].to(o.device) @ i).flatten(1).cpu() for name, (o, i) in sides], 1)


def compared(documents: Projected, towards: Float[Tensor, "behaviours numbers"]) -> Similarities:
    """What `per_example.similarities` gives, up to the error of the projection; no model is needed."""
    dots = (documents.units.float() @ towards.T).double() * documents.norms[:, None]
    return Similarities(dots, documents.norms, documents.losses, documents.states)


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
        towards = per_example.directions(model.float(), queries, blocks)
        exact = per_example.similarities(model, documents, towards, blocks, batch_tokens)
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
