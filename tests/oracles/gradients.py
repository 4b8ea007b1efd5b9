"""Per-document gradients as a naive loop: one document at a time, autograd with respect to the weights themselves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from datablame.models.chat import Encoded


class Naive(NamedTuple):
    """What `datablame.attribute.kernels.per_example.similarities` promises."""

    dots: Tensor
    norms: Tensor
    losses: Tensor


def naive_gradient(model: Any, document: Encoded, blocks: Sequence[int]) -> tuple[Tensor, float]:
    """The gradient of the mean NLL over the response, over all Linear weights of the blocks, and that loss."""
    weights = [
        layer.weight
        for block in sorted(set(blocks))
        for layer in model.model.layers[block].modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    required = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    logits = model(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0].float()
    targets = torch.tensor(document.ids[document.prompt_tokens :])
    loss = F.cross_entropy(logits[document.prompt_tokens - 1 : -1], targets)
    parts = torch.autograd.grad(loss, weights)
    for weight, was in zip(weights, required, strict=True):
        weight.requires_grad_(was)
    return torch.cat([part.flatten().double() for part in parts]), float(loss.detach())


def naive_similarities(
    model: Any, documents: Sequence[Encoded], queries: Sequence[Sequence[Encoded]], blocks: Sequence[int]
) -> Naive:
    """Dot products with each behaviour's mean of unit query gradients, norms and losses."""
    means = []
    for own in queries:
        units = [gradient / gradient.norm() for gradient, _ in (naive_gradient(model, q, blocks) for q in own)]
        means.append(torch.stack(units).mean(0))
    found = [naive_gradient(model, document, blocks) for document in documents]
    gradients = torch.stack([gradient for gradient, _ in found])
    return Naive(gradients @ torch.stack(means).T, gradients.norm(dim=1), torch.tensor([loss for _, loss in found]))
