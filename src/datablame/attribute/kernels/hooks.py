"""Passes of a model over batches of documents: hidden states, and each chosen layer's inputs and output gradients."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from datablame.errors import PhaseError
from datablame.models.blocks import decoder_blocks
from datablame.models.chat import Encoded, Preference
from datablame.models.device import ran_out_of_memory, to_float64
from datablame.models.likelihood import length_batches, response_nll, response_places

_logger = logging.getLogger(__name__)

Inputs = Float[Tensor, "batch tokens inputs"]
Deltas = Float[Tensor, "batch tokens outputs"]
"""A layer's inputs and the gradients at its outputs."""
LayerCallback = Callable[[str, Inputs, Deltas, float], None]
"""Hears a layer's name, its inputs, the gradients at its outputs, and by what power of two those are too large."""

_FLOAT16_SCALE = 2.0**8


def in_batches(
    lengths: Sequence[int], batch_tokens: int, work: Callable[[list[int]], None], indices: Sequence[int] | None = None
) -> None:
    """Call `work` on batches that cover every index once; one that does not fit in memory is halved.

    Raises PhaseError where a single document does not fit.
    """
    waiting = length_batches(lengths, batch_tokens, indices)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            work(batch)
            continue
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
        if len(batch) == 1:
            raise PhaseError(
                f"a document of {lengths[batch[0]]} tokens does not fit in memory; lower attribute.max_tokens"
            )
        torch.cuda.empty_cache()
        batch_tokens = max(1, len(batch) * max(lengths[index] for index in batch) // 2)
        _logger.warning("memory ran out; batches of documents now hold at most %d tokens", batch_tokens)
        left = sorted(index for each in [batch, *waiting] for index in each)
        waiting = length_batches(lengths, batch_tokens, left)[::-1]


def linears(model: Any, blocks: Sequence[int]) -> dict[str, nn.Linear]:
    """The Linear layers of the chosen decoder blocks by BLOCK.NAME; ValueError where a block has none."""
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
    """Weights frozen, `on` called as each chosen layer's gradient arrives; none goes below the lowest block."""

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


class _Enough(Exception):
    """The states are there; the blocks above need not run."""


@contextlib.contextmanager
def hidden_states_of(
    model: Any, layer: int, on: Callable[[Float[Tensor, "batch tokens width"]], None], *, stop: bool = False
) -> Iterator[None]:
    """`on` is called with the hidden states of `layer` (0 is the embedding, the last one is normed).

    With `stop` the model runs no further, and whatever calls it inside ends there.
    """

    def hear(states: Tensor) -> None:
        on(states.detach())
        if stop:
            raise _Enough

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hear(args[0] if args else kwargs["hidden_states"])

    def leaving(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        hear(output[0])

    blocks = decoder_blocks(model)
    hook = (
        blocks[layer].register_forward_pre_hook(entering, with_kwargs=True)
        if layer < len(blocks)
        else model.base_model.register_forward_hook(leaving)
    )
    try:
        yield
    except _Enough:
        pass
    finally:
        hook.remove()


def means(
    states: Float[Tensor, "batch tokens width"], firsts: Int[Tensor, " batch"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch width"]:
    """The mean of each row's states from its first counted token to its last."""
    columns = torch.arange(states.shape[1], device=states.device)
    counted = ((firsts[:, None] <= columns) & (columns < lengths[:, None])).unsqueeze(2)
    return states.float().where(counted, 0).sum(1) / (lengths - firsts)[:, None]


@torch.no_grad()
def mean_hidden(
    model: Any, documents: Sequence[Encoded | Preference], layer: int, batch_tokens: int, responses_only: bool = False
) -> Float[Tensor, "documents width"]:
    """The hidden state of `layer` (0 is the embedding) averaged over each document's tokens, padding left out.

    Of a preference pair it is the difference vector: the mean with the chosen answer minus that with the rejected one.
    `responses_only` averages over the tokens of the response alone, its prompt still being read.
    """
    rows = [document if isinstance(document, Encoded) else document.chosen for document in documents]
    paired = {index: document.rejected for index, document in enumerate(documents) if isinstance(document, Preference)}
    mean = _means(model, rows, layer, batch_tokens, responses_only)
    if paired:
        mean[list(paired)] -= _means(model, list(paired.values()), layer, batch_tokens, responses_only)
    return mean


def _means(
    model: Any, documents: Sequence[Encoded], layer: int, batch_tokens: int, responses_only: bool
) -> Float[Tensor, "documents width"]:
    mean = torch.zeros(len(documents), model.config.hidden_size)

    def work(indices: list[int]) -> None:
        batch = [documents[index] for index in indices]
        firsts = torch.tensor([document.prompt_tokens if responses_only else 0 for document in batch])
        lengths = torch.tensor([len(document.ids) for document in batch])

        def hear(states: Tensor) -> None:
            mean[indices] = means(states, firsts.to(states.device), lengths.to(states.device)).cpu()

        # Under the causal mask no token sees the padding, so no attention mask is needed.
        longest = int(lengths.max())
        padded = [[*document.ids, *[0] * (longest - len(document.ids))] for document in batch]
        ids = torch.tensor(padded, device=next(model.parameters()).device)
        with hidden_states_of(model, layer, hear, stop=True):
            model.base_model(input_ids=ids, use_cache=False)

    in_batches([len(document.ids) for document in documents], batch_tokens, work)
    return mean
