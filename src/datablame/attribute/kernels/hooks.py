"""One forward and backward pass of a frozen model that shows each chosen layer's inputs and output gradients."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.blocks import decoder_blocks
from datablame.models.chat import Encoded
from datablame.models.device import to_float64
from datablame.models.likelihood import response_nll, response_places

Inputs = Float[Tensor, "batch tokens inputs"]
Deltas = Float[Tensor, "batch tokens outputs"]
"""A layer's inputs and the gradients at its outputs."""
LayerCallback = Callable[[str, Inputs, Deltas, float], None]
"""Hears a layer's name, its inputs, the gradients at its outputs, and by what power of two those are too large."""

_FLOAT16_SCALE = 2.0**8


def linears(model: Any, blocks: Sequence[int]) -> dict[str, nn.Linear]:
    """The Linear layers of the chosen decoder blocks by BLOCK.NAME.

    Raises:
        ValueError: a block has none.
    """
    stack = decoder_blocks(model)
    layers = {}
    for block in sorted(set(blocks)):
        modules = stack[block].named_modules()
        of_block = {f"{block}.{name}": layer for name, layer in modules if isinstance(layer, nn.Linear)}
        if not of_block:
            raise ValueError(f"decoder block {block} of {type(model).__name__} has no Linear layer")
        layers.update(of_block)
    return layers


def backward_with_hooks(
    model: Any, documents: Sequence[Encoded], blocks: Sequence[int], on: LayerCallback
) -> Float[Tensor, " documents"]:
    """Mean NLL over each document's response; `on` is called for each layer on the way back.

    Where weights are float16 the loss is scaled on its way back, for most of its gradient would be zero otherwise.
    """
    scale = _FLOAT16_SCALE if model.dtype is torch.float16 else 1.0
    places = response_places(documents, next(model.parameters()).device)
    counts = torch.bincount(places.rows, minlength=len(documents))
    with _observed(model, blocks, lambda name, inputs, deltas: on(name, inputs, deltas, scale)), torch.enable_grad():
        nll = response_nll(model, places)
        ((nll / counts[places.rows].to(nll.device)).sum() * scale).backward()
    details = to_float64(nll.detach())
    summed = details.new_zeros(len(documents))
    losses: Tensor = summed.index_add(0, places.rows.to(details.device), details) / counts.to(details.device)
    return losses


@contextlib.contextmanager
def _observed(model: Any, blocks: Sequence[int], on: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Weights frozen, and `on` called as each chosen layer's gradient arrives.

    The graph begins at the outputs of the first layers: not even the lowest block's input gets a gradient.
    """

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].detach(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs = args[0].detach()
            if inputs.ndim != 3:
                raise ValueError(f"{name} sees {inputs.ndim} axes, not (batch, tokens, width); leave its block out")
            if not output.requires_grad:
                # Not the leaf itself: some architectures clamp a layer's outputs in place.
                output = output.detach().requires_grad_(True).clone()
            output.register_hook(lambda gradient: on(name, inputs, gradient.detach()))
            return output

        return hook

    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    hooks = [decoder_blocks(model)[min(blocks)].register_forward_pre_hook(cut, with_kwargs=True)]
    hooks += [layer.register_forward_hook(observe(name)) for name, layer in linears(model, blocks).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight in trainable:
            weight.requires_grad_(True)
