"""Per-document gradients as a naive loop: one document at a time, autograd with respect to the weights themselves."""

from collections.abc import Callable, Sequence
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


UNCALLED = ("mamba.dt_proj", "mixer.dt_proj")
"""Layers of Mamba that are no product to any hook: the model multiplies with their weight itself."""


def block_weights(model: Any, blocks: Sequence[int]) -> list[Tensor]:
    """All matrices of the blocks.

    They are the weights of Linear layers and of GPT-2's Conv1D, and experts that stand in one parameter.
    """
    stack = next(
        module
        for module in (model.model if hasattr(model, "decoder") else model.get_decoder()).modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.get_text_config().num_hidden_layers
    )
    weights = {
        id(weight): weight
        for block in sorted(set(blocks))
        for name, module in stack[block].named_modules()
        for own, weight in module.named_parameters(recurse=False)
        if (
            own == "weight"
            and type(module).__name__ in ("Linear", "Conv1D", "FalconLinear")
            and not name.endswith(UNCALLED)
        )
        or (own in ("gate_up_proj", "up_proj", "down_proj") and hasattr(module, "has_gate"))
    }
    return list(weights.values())


def gradient_of(loss_of: Callable[[], Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The gradient of a loss with respect to the weights, as one row, and that loss."""
    required = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    loss = loss_of()
    parts = torch.autograd.grad(loss, list(weights), materialize_grads=True)
    for weight, was in zip(weights, required, strict=True):
        weight.requires_grad_(was)
    return torch.cat([part.flatten().double() for part in parts]), float(loss.detach())


def mean_nll(model: Any, document: Encoded) -> Tensor:
    """The mean NLL over the response, from full logits."""
    logits = model(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0].float()
    targets = torch.tensor(document.ids[document.prompt_tokens :])
    return F.cross_entropy(logits[document.prompt_tokens - 1 : -1], targets)


def naive_gradient(model: Any, document: Encoded, blocks: Sequence[int]) -> tuple[Tensor, float]:
    """The gradient of the mean NLL over the response, over all matrices of the blocks, and that loss."""
    return gradient_of(lambda: mean_nll(model, document), block_weights(model, blocks))


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
