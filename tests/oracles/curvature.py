"""Curvature as dense matrices: every document's gradient in full, every block inverted by numpy."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from datablame.models.chat import Encoded, Preference
from datablame.models.products import products

Array = NDArray[np.float64]
Gradients = Mapping[str, Array]
"""By product, of shape (outputs, inputs)."""


class Seen(NamedTuple):
    """Of one document: its gradient, and its tokens' inputs and output gradients."""

    gradient: Gradients
    inputs: Gradients
    deltas: Gradients


def seen(model: Any, document: Encoded | Preference, blocks: Sequence[int]) -> Seen:
    """Autograd with respect to Linear weights and to their outputs, one answer at a time."""
    if isinstance(document, Encoded):
        return _seen(model, document, blocks, 1.0)
    up, down = _seen(model, document.chosen, blocks, 1.0), _seen(model, document.rejected, blocks, -1.0)
    return Seen(
        {name: up.gradient[name] + down.gradient[name] for name in up.gradient},
        *({name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(up[1:], down[1:], strict=True)),
    )


def _seen(model: Any, document: Encoded, blocks: Sequence[int], sign: float) -> Seen:
    layers = {name: product.modules[0] for name, product in products(model, blocks).items()}
    inputs, outputs = dict[str, Any](), dict[str, Any]()
    hooks = []
    for name, layer in layers.items():

        def keep(_: Any, args: Any, output: Any, name: str = name) -> None:
            inputs[name], outputs[name] = args[0], output

        hooks.append(layer.register_forward_hook(keep))
        layer.weight.requires_grad_(True)
    logits = model(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0].float()
    targets = torch.tensor(document.ids[document.prompt_tokens :])
    loss = sign * F.cross_entropy(logits[document.prompt_tokens - 1 : -1], targets)
    wanted = [*(layer.weight for layer in layers.values()), *outputs.values()]
    found = [part.double().numpy() for part in torch.autograd.grad(loss, wanted)]
    for hook, layer in zip(hooks, layers.values(), strict=True):
        hook.remove()
        layer.weight.requires_grad_(False)
    deltas = {name: part[0] for name, part in zip(outputs, found[len(layers) :], strict=True)}
    return Seen(
        dict(zip(layers, found, strict=False)),
        {name: part.detach()[0].double().numpy() for name, part in inputs.items()},
        deltas,
    )


def dense_blocks(documents: Sequence[Seen], *, diagonal: bool, damping: float = 0.1) -> dict[str, Array]:
    """H = U diag(lambda + damping) U^T of each product, of shape (weights, weights), U = kron(U_S, U_A)."""
    blocks = {}
    for name in documents[0].gradient:
        gradients = np.stack([each.gradient[name].ravel() for each in documents])
        outputs, inputs = documents[0].gradient[name].shape
        basis = np.eye(outputs * inputs)
        if not diagonal:
            deltas, tokens = (np.concatenate([each[i][name] for each in documents]) for i in (2, 1))
            basis = np.kron(np.linalg.eigh(deltas.T @ deltas)[1], np.linalg.eigh(tokens.T @ tokens)[1])
        eigenvalues = ((gradients @ basis) ** 2).mean(0)
        blocks[name] = (basis * (eigenvalues + damping * eigenvalues.mean())) @ basis.T
    return blocks


def dense_influence(documents: Sequence[Seen], queries: Sequence[Seen], blocks: Mapping[str, Array]) -> Array:
    """<g_d, H^-1 g_q / ||g_q||>, averaged over the queries."""
    total = np.zeros(len(documents))
    for query in queries:
        norm = np.sqrt(sum((part**2).sum() for part in query.gradient.values()))
        for name, block in blocks.items():
            solved = np.linalg.solve(block, query.gradient[name].ravel() / norm)
            total += np.array([each.gradient[name].ravel() @ solved for each in documents])
    return total / len(queries)


def dense_whitened(documents: Sequence[Seen], queries: Sequence[Seen], blocks: Mapping[str, Array]) -> Array:
    """The cosine of g_d and g_q in the inner product of H^-1, averaged over the queries."""

    def inner(a: Seen, b: Seen) -> float:
        return sum(
            float(a.gradient[name].ravel() @ np.linalg.solve(block, b.gradient[name].ravel()))
            for name, block in blocks.items()
        )

    norms = np.sqrt([inner(each, each) for each in documents])
    cosines = [[inner(each, query) for each in documents] / norms / np.sqrt(inner(query, query)) for query in queries]
    mean: Array = np.stack(cosines).mean(0)
    return mean
