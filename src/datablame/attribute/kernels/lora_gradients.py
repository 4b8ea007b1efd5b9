"""Gradients of LoRA's factors for single documents, and the steps of Adam that they would make: LESS.

For y = x W^T + s x A^T B^T with output gradients G and inputs X, the gradient of B is s G^T (X A^T) and that of A is
s (G B)^T X: both come from what hooks hear at the layer under the adapter, so that one pass serves W, A and B alike.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.hooks import Deltas, Inputs
from datablame.attribute.kernels.per_example import (
    Blocks,
    Directions,
    Documents,
    Projection,
    Queries,
    norm_over_layers,
    per_example_pass,
    projection_sides,
)
from datablame.models.chat import Encoded
from datablame.models.device import to_float64
from datablame.models.lora import SCALE, Adapter, factors_of
from datablame.models.products import products

Factors = Mapping[str, tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]
"""A and B by the name of the layer that they are on."""
Formed = Float[Tensor, "batch rows columns"]


class AdamMoments(NamedTuple):
    """Adam's running means of gradients and of their squares for A and B of each layer, after so many steps."""

    first: Factors
    second: Factors
    steps: int


class AdamSettings(NamedTuple):
    """beta1, beta2 and epsilon (Kingma and Ba, arXiv 1412.6980)."""

    beta1: float
    beta2: float
    epsilon: float

    def step(self, gradient: Formed, first: Tensor, second: Tensor, steps: int) -> Formed:
        """The step m / (sqrt(v) + epsilon) with the gradient taken into both, bias corrected."""
        m = (self.beta1 * first + (1 - self.beta1) * gradient) / (1 - self.beta1 ** (steps + 1))
        v = (self.beta2 * second + (1 - self.beta2) * gradient**2) / (1 - self.beta2 ** (steps + 1))
        return m / (v.sqrt() + self.epsilon)


def by_side(factors: Factors) -> dict[str, Tensor]:
    """The same by `LAYER A` and `LAYER B`."""
    sides = {name: zip("AB", pair, strict=True) for name, pair in factors.items()}
    return {f"{name} {side}": tensor for name, both in sides.items() for side, tensor in both}


def lora_projection(adapter: Adapter, size: int | None) -> Projection:
    """The matrices that gradients of A and B are projected with, by `by_side`'s names; empty where they stay whole."""
    if size is None:
        return {}
    sides = by_side(factors_of(adapter)).items()
    return {name: projection_sides(name, each.shape[0], each.shape[1], size, each.device) for name, each in sides}


def lora_directions(adapter: Adapter, queries: Queries, projection: Projection, blocks: Blocks) -> Directions:
    """For each behaviour's queries the mean of their gradients with respect to A and B, at unit norm as projected."""
    means = dict[str, Tensor]()
    for behaviour, of_behaviour in enumerate(queries):
        for query in of_behaviour:
            gradient = _gradient(adapter, query, projection, blocks)
            norm = norm_over_layers(gradient)
            for name, part in gradient.items():
                mean = means.setdefault(name, part.new_zeros(len(queries), *part.shape))
                if norm > 0:
                    mean[behaviour] += part / (norm * len(of_behaviour)).float().to(part.device)
    return means


def _gradient(adapter: Adapter, query: Encoded, projection: Projection, blocks: Blocks) -> dict[str, Tensor]:
    gradient = dict[str, Tensor]()

    def add(_: Tensor, name: str, formed: Formed) -> None:
        gradient[name] = _projected(name, formed, projection)[0]

    _pass(adapter, [query], blocks, len(query.ids), 0, add)
    return gradient


def adam_cosines(
    adapter: Adapter,
    documents: Documents,
    towards: Directions,
    moments: AdamMoments,
    adam: AdamSettings,
    projection: Projection,
    blocks: Blocks,
    batch_tokens: int,
) -> Float[Tensor, "documents behaviours"]:
    """Cosines of each document's step of Adam with the directions; 0 where there is no step."""
    n = next(iter(towards.values())).shape[0]

    def add(rows: Tensor, name: str, formed: Formed) -> None:
        layer, side = name.rsplit(" ", 1)
        first, second = (of[layer]["AB".index(side)].to(formed.device) for of in (moments.first, moments.second))
        step = _projected(name, adam.step(formed, first, second, moments.steps), projection).flatten(1)
        rows[:, :n] += to_float64(step @ towards[name].to(step.device).flatten(1).T)
        rows[:, n] += to_float64(torch.linalg.vector_norm(step, dim=1)) ** 2

    dots, squares = _pass(adapter, documents, blocks, batch_tokens, n + 1, add).split([n, 1], 1)
    return torch.where(squares > 0, dots / squares.sqrt(), 0)


def _pass(
    adapter: Adapter, documents: Documents, blocks: Blocks, batch_tokens: int, columns: int, add: Any
) -> Float[Tensor, "documents columns"]:
    """A pass over the documents in which `add` hears, for each A and B, the batch's rows, its name and gradients."""
    model, factors = adapter.owner.get_base_model(), factors_of(adapter)
    names = _names(model, blocks)

    def hear(rows: Tensor, product: str, inputs: Inputs, deltas: Deltas, scale: float) -> None:
        name = names[product]
        a, b = (each.detach().float() for each in factors[name])
        inputs, deltas = inputs.float(), deltas.float() * (SCALE / scale)
        add(rows, f"{name} A", (deltas @ b).transpose(1, 2) @ inputs)
        add(rows, f"{name} B", deltas.transpose(1, 2) @ (inputs @ a.T))

    return per_example_pass(model, documents, blocks, batch_tokens, None, columns, hear)[0]


def _names(model: Any, blocks: Blocks) -> dict[str, str]:
    """The names in the model of what is adapted, by the products' names while an adapter is on.

    What a pass calls was found out before the adapter came, so that its own layers are no products.
    """
    modules = {id(module): name.removesuffix(".base_layer") for name, module in model.named_modules()}
    return {product: modules[id(each.modules[0])] for product, each in products(model, blocks).items()}


def _projected(name: str, formed: Formed, projection: Projection) -> Float[Tensor, "batch _ _"]:
    if name not in projection:
        return formed
    rows, columns = projection[name]
    projected: Tensor = rows.T @ formed @ columns
    return projected
