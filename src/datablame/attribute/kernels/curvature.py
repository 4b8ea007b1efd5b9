"""Curvature of the loss from the documents' own gradients, diagonal or in a Kronecker eigenbasis, and its inverses.

The curvature is the empirical Fisher matrix F = E_d[g_d g_d^T] over documents, a block for each product, with g_d the
gradient of the document's loss as `per_example` has it. A product's gradient is G^T A, a sum over tokens, and its block
is taken as diagonal in a basis U_S x U_A:

- the weights themselves: the diagonal of F;
- the eigenvectors of S = sum_t G_t G_t^T and A = sum_t A_t A_t^T over all documents' tokens: EK-FAC (George et al.,
  arXiv 1806.03884; Grosse et al., arXiv 2308.03296), which corrects K-FAC's eigenvalues to
  lambda_ij = E_d[(u_i^T G_d^T A_d v_j)^2].

All tokens of a document have a part in A, and batches for it hold answers of one length, so that there is no padding;
what S and A are scaled by has no part in lambda. The labels are the documents' own, not sampled from the model as in
the Fisher matrix proper: of pairs nothing could be sampled, and no random numbers come in. Where a document is fitted
its gradient, and its share in F, goes to zero (Kunstner et al., arXiv 1905.12558). To every eigenvalue of a product 0.1
times their mean is added (Grosse et al.).
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.hooks import Deltas, Inputs
from datablame.attribute.kernels.per_example import (
    Blocks,
    Directions,
    Documents,
    OfLayer,
    Queries,
    contributions,
    directions,
    per_example_pass,
)
from datablame.models.chat import Encoded, answers
from datablame.models.device import offload_device, to_float64, with_float64
from datablame.models.products import products

DAMPING = 0.1
"""Times the mean eigenvalue of a product."""
_HELD_NUMBERS = 1 << 24
"""Gradients of single documents that are formed at a time hold at most this many numbers (or one document's)."""


class Sides(NamedTuple):
    """Two matrices of a product: sums of outer products, or what inputs and output gradients are multiplied with."""

    outputs: Float[Tensor, "outputs outputs"]
    inputs: Float[Tensor, "inputs inputs"]


Bases = Mapping[str, Sides]
"""For each product its eigenvectors, as columns; a product that is not there has its weights' own basis."""


class Curvature(NamedTuple):
    """A product's curvature: eigenvalues, all at least 0, without the damping, in a basis; None: of the weights."""

    eigenvalues: Float[Tensor, "outputs inputs"]
    basis: Sides | None

    @property
    def damping(self) -> float:
        """What is added to every eigenvalue; 0 where no document moves the product."""
        return DAMPING * float(to_float64(self.eigenvalues).mean())

    def to_the(self, power: float, gradients: OfLayer) -> OfLayer:
        """The damped curvature, raised to a power, times gradients; zeros where no document moves the product."""
        damping = self.damping
        if not damping:
            return torch.zeros_like(gradients)
        powers = (to_float64(self.eigenvalues) + damping).pow(power).float().to(gradients.device)
        if self.basis is None:
            return gradients * powers
        outputs, inputs = (side.to(gradients.device) for side in self.basis)
        turned: Tensor = outputs @ ((outputs.T @ gradients @ inputs) * powers) @ inputs.T
        return turned


class Influence(NamedTuple):
    """Of every document: its gradient's dot products with the directions, and its norm in the whitened space."""

    dots: Float[Tensor, "documents directions"]
    norms: Float[Tensor, " documents"]
    """Zeros where no whitening was asked for."""


def covariances(model: Any, documents: Iterable[Documents], blocks: Blocks, batch_tokens: int) -> dict[str, Tensor]:
    """Sums over tokens in float64, by product: `NAME outputs` is that of G_t G_t^T, `NAME inputs` that of A_t A_t^T.

    A pair's two answers count as documents would: the sign of G has no say. Documents come some at a time.
    """
    sizes = dict[str, tuple[int, int]]()
    for name, product in products(model, blocks).items():
        sizes[f"{name} outputs"] = (product.outputs, product.outputs)
        sizes[f"{name} inputs"] = (product.inputs, product.inputs)

    def terms(name: str, inputs: Tensor, deltas: Tensor) -> Iterable[tuple[str, Tensor]]:
        for side, matrix in zip(Sides._fields, outer_products(inputs, deltas), strict=True):
            yield f"{name} {side}", matrix

    def of_one_length() -> Iterator[Documents]:
        for some in documents:
            of_length = defaultdict[int, list[Encoded]](list)
            for answer in chain.from_iterable(map(answers, some)):
                of_length[len(answer.ids)].append(answer)
            yield from of_length.values()

    return _summed(model, of_one_length(), blocks, batch_tokens, sizes, terms)


def outer_products(inputs: Inputs, deltas: Deltas) -> Sides:
    """Their sums over all tokens."""
    inputs, deltas = inputs.flatten(0, 1), deltas.flatten(0, 1)
    return Sides(deltas.T @ deltas, inputs.T @ inputs)


def eigenvectors(covariance: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """As columns, in float32, found in float64."""
    vectors: Tensor = torch.linalg.eigh(to_float64(covariance)).eigenvectors
    return vectors.float()


def squares(
    model: Any, documents: Iterable[Documents], blocks: Blocks, batch_tokens: int, kinds: Mapping[str, Bases]
) -> dict[str, Tensor]:
    """Sums over documents, some at a time, in float64 of the squared gradient in each kind's bases, as `KIND NAME`."""
    of = products(model, blocks).items()
    sizes = {f"{kind} {name}": (product.outputs, product.inputs) for kind in kinds for name, product in of}

    def terms(name: str, inputs: Tensor, deltas: Tensor) -> Iterable[tuple[str, Tensor]]:
        for kind, bases in kinds.items():
            yield f"{kind} {name}", squared(inputs, deltas, bases.get(name))

    return _summed(model, documents, blocks, batch_tokens, sizes, terms)


def squared(inputs: Inputs, deltas: Deltas, basis: Sides | None) -> Float[Tensor, "outputs inputs"]:
    """The sum over documents of their squared gradients in a basis."""
    return torch.stack([part.pow(2).sum(0) for part in _in_basis(inputs, deltas, basis)]).sum(0)


def whitened_squares(inputs: Inputs, deltas: Deltas, curvature: Curvature) -> Float[Tensor, " batch"]:
    """Of each document g^T H^-1 g, with H the damped curvature; zeros where no document moves the product."""
    if not (damping := curvature.damping):
        return torch.zeros(len(inputs), dtype=torch.float64, device=with_float64(inputs.device))
    roots = (to_float64(curvature.eigenvalues) + damping).rsqrt().float().to(inputs.device)
    parts = _in_basis(inputs, deltas, curvature.basis)
    return to_float64(torch.cat([torch.linalg.vector_norm(part * roots, dim=(1, 2)) for part in parts])).pow(2)


def preconditioned(
    model: Any, queries: Queries, blocks: Blocks, curvatures: Mapping[str, Curvature], *, whitened: bool
) -> Directions:
    """H^-1 times each behaviour's direction (`per_example.directions`), with H the damped curvature.

    `whitened`: H^-1/2 times the mean of its queries' H^-1/2 g, each scaled to unit norm. A document's dot product with
    it, over its own norm in the whitened space, is the mean cosine there (Chang et al., arXiv 2410.17413).
    """

    def turn(name: str, gradients: OfLayer) -> OfLayer:
        return curvatures[name].to_the(-0.5 if whitened else -1.0, gradients)

    towards = directions(model, queries, blocks, transform=turn) if whitened else directions(model, queries, blocks)
    return {name: turn(name, part) for name, part in towards.items()}


def influence(
    model: Any,
    documents: Documents,
    towards: Directions,
    blocks: Blocks,
    batch_tokens: int,
    whitening: Mapping[str, Curvature],
) -> Influence:
    """Each document's gradient beside the directions, in document order; with a whitening its norm there too.

    Exact up to rounding and independent of the batches. Raises PhaseError where a document does not fit in memory.
    """
    n = next(iter(towards.values())).shape[0]

    def add(rows: Tensor, name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
        dots, _ = contributions(inputs, deltas, towards[name].to(inputs.device))
        rows[:, :n].add_(dots, alpha=1 / scale)
        if whitening:
            rows[:, n] += whitened_squares(inputs.float(), deltas.float() / scale, whitening[name])

    rows, _, _ = per_example_pass(model, documents, blocks, batch_tokens, None, n + 1, add)
    return Influence(rows[:, :n].contiguous(), rows[:, n].sqrt())


def _in_basis(inputs: Inputs, deltas: Deltas, basis: Sides | None) -> Iterator[Float[Tensor, "some outputs inputs"]]:
    """Gradients of a few documents at a time, in a basis."""
    step = max(1, _HELD_NUMBERS // (inputs.shape[-1] * deltas.shape[-1]))
    for of_inputs, of_deltas in zip(inputs.split(step), deltas.split(step), strict=True):
        if basis is not None:
            of_inputs = of_inputs @ basis.inputs.to(inputs.device)
            of_deltas = of_deltas @ basis.outputs.to(inputs.device)
        yield of_deltas.transpose(1, 2) @ of_inputs


def _summed(
    model: Any,
    groups: Iterable[Documents],
    blocks: Blocks,
    batch_tokens: int,
    sizes: Mapping[str, tuple[int, int]],
    terms: Callable[[str, Tensor, Tensor], Iterable[tuple[str, Tensor]]],
) -> dict[str, Tensor]:
    """Sums over batches of what `terms` gives for each product, in float64; no batch spans two groups of documents.

    A batch counts once it is done: one that runs out of memory halfway is done again in halves.
    """
    numbers = sum(rows * columns for rows, columns in sizes.values())
    device = with_float64(offload_device(8 * numbers, next(model.parameters()).device))
    totals = {key: torch.zeros(size, dtype=torch.float64, device=device) for key, size in sizes.items()}
    of_batch = dict[str, Tensor]()

    @contextlib.contextmanager
    def batch() -> Iterator[None]:
        of_batch.clear()
        yield
        for key, term in of_batch.items():
            totals[key].add_(term.to(device))

    def add(_: Tensor, name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
        of_batch.update(terms(name, inputs.float(), deltas.float() / scale))

    for documents in groups:
        per_example_pass(model, documents, blocks, batch_tokens, None, 0, add, batch)
    return totals
