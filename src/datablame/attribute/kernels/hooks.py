"""Passes of a model over batches of documents: hidden states, and each chosen product's inputs and output gradients."""

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.errors import PhaseError
from datablame.models.blocks import decoder_blocks
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import ran_out_of_memory, to_float64
from datablame.models.experts import Routing, multiplied
from datablame.models.likelihood import length_batches, response_nll, response_positions
from datablame.models.products import listening

_logger = logging.getLogger(__name__)

Inputs = Float[Tensor, "batch tokens inputs"]
Deltas = Float[Tensor, "batch tokens outputs"]
"""A product's inputs and the gradients at its outputs."""
ProductCallback = Callable[[str, Inputs, Deltas, float], None]
"""Hears a product's name, its inputs, the gradients at its outputs, and by what power of two those are too large."""
Pooling = Literal["mean", "response", "last"]
"""Over all tokens of a text, over those of its response alone, or the last one: as encoded, be it the turn's end."""
Pooled = Float[Tensor, "documents layers poolings width"]

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
        longest = max(lengths[index] for index in batch)
        if len(batch) == 1:
            raise PhaseError(f"a document of {longest} tokens does not fit in memory; lower attribute.max_tokens")
        torch.cuda.empty_cache()
        batch_tokens = max(1, len(batch) * longest // 2)
        _logger.warning("memory ran out; batches of documents now hold at most %d tokens", batch_tokens)
        left = sorted(index for each in [batch, *waiting] for index in each)
        waiting = length_batches(lengths, batch_tokens, left)[::-1]


def backward_with_hooks(
    model: Any, documents: Sequence[Encoded], blocks: Sequence[int], on: ProductCallback
) -> Float[Tensor, " documents"]:
    """Mean NLL over each document's response; `on` is called for each product on the way back.

    Where weights are float16 the loss is scaled on its way back, for most of its gradient would be zero otherwise.
    """
    scale = _FLOAT16_SCALE if model.dtype is torch.float16 else 1.0
    positions = response_positions(documents, next(model.parameters()).device)
    counts = torch.bincount(positions.rows, minlength=len(documents))
    with _observed(model, blocks, positions.ids.shape, on, scale), torch.enable_grad():
        nll = response_nll(model, positions)
        ((nll / counts[positions.rows].to(nll.device)).sum() * scale).backward()
    details = to_float64(nll.detach())
    summed = details.new_zeros(len(documents))
    losses: Tensor = summed.index_add(0, positions.rows.to(details.device), details) / counts.to(details.device)
    return losses


@contextlib.contextmanager
def _observed(
    model: Any, blocks: Sequence[int], shape: tuple[int, ...], on: ProductCallback, scale: float
) -> Iterator[None]:
    """`on` called as each product's gradient arrives; weights are frozen, so none goes below the lowest layer.

    What is called several times in a pass is one product over the tokens of all calls.
    """
    batch, tokens = shape
    calls, heard = Counter[str](), defaultdict[str, list[tuple[Tensor, Tensor]]](list)

    def hear(name: str, inputs: Tensor, deltas: Tensor) -> None:
        heard[name].append((inputs, deltas))
        if len(heard[name]) == calls[name]:
            tell(name)

    def tell(name: str) -> None:
        of_calls = heard.pop(name)
        inputs, deltas = of_calls[0] if len(of_calls) == 1 else map(torch.cat, zip(*of_calls, strict=True), (1, 1))
        on(name, inputs, deltas, scale)

    def differentiable(output: Tensor) -> Tensor:
        # Not the leaf itself: some architectures clamp a layer's outputs in place.
        return output if output.requires_grad else output.detach().requires_grad_(True).clone()

    def observe(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs, output = args[0].detach(), differentiable(output)
        if len(inputs) not in (batch, batch * tokens):
            raise PhaseError(f"attribute.layers: {name} sees only some tokens of a document; leave its block out")
        calls[name] += 1

        def arrived(gradient: Tensor) -> None:
            hear(name, *(each.reshape(batch, -1, each.shape[-1]) for each in (inputs, gradient.detach())))

        output.register_hook(arrived)
        return output

    def observed(name: str, module: Any, parameter: str, inputs: Tensor, routing: Routing) -> Tensor:
        outputs = differentiable(multiplied(module, parameter, inputs, routing))
        counts, rows = routing.by_expert(getattr(module, parameter).shape[0]), routing.tokens // tokens
        calls.update(f"{name}.{parameter}.{expert}" for expert, count in enumerate(counts) if count)

        def arrived(gradient: Tensor) -> None:
            parts = zip(*(each.split(counts) for each in (rows, inputs.detach(), gradient.detach())), strict=True)
            for expert, (of, *both) in enumerate(parts):
                if len(of):
                    hear(f"{name}.{parameter}.{expert}", *_by_document(of, batch, *both))

        outputs.register_hook(arrived)
        return outputs

    with contextlib.ExitStack() as undone:
        for weight in [weight for weight in model.parameters() if weight.requires_grad]:
            undone.callback(weight.requires_grad_)
            weight.requires_grad_(False)
        undone.enter_context(listening(model, blocks, observe, observed))
        yield
    # Of a product that is called several times some outputs may have no say in the loss.
    for name in list(heard):
        tell(name)


def _by_document(rows: Tensor, batch: int, *parts: Tensor) -> list[Tensor]:
    """An expert's pairs, ordered by token, as (batch, tokens, width), zeros behind a document's last."""
    counts = torch.bincount(rows, minlength=batch)
    columns = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    spread = [part.new_zeros(batch, int(counts.max()), part.shape[-1]) for part in parts]
    for zeros, part in zip(spread, parts, strict=True):
        zeros[rows, columns] = part
    return spread


class _Enough(Exception):
    """The states are there; the blocks above need not run."""


@contextlib.contextmanager
def pooled_states_of(
    model: Any,
    layers: Sequence[int],
    poolings: Sequence[Pooling],
    rows: Sequence[Encoded],
    on: Callable[[Pooled], None],
) -> Iterator[None]:
    """`on` is called with each row's pooled states of the layers (0 is the embedding, the last one is normed).

    The layers rise. Where `on` raises `_Enough` the model runs no further, and whatever calls it inside ends there.
    """
    heard = list[Tensor]()

    def hear(states: Tensor) -> None:
        firsts = {"mean": [0] * len(rows), "response": [row.prompt_tokens for row in rows]}
        firsts["last"] = [len(row.ids) - 1 for row in rows]
        ends = torch.tensor([len(row.ids) for row in rows], device=states.device)
        columns = torch.arange(states.shape[1], device=states.device)
        known, pooled = states.detach().float(), []
        for pooling in poolings:
            first = torch.tensor(firsts[pooling], device=states.device)
            counted = ((first[:, None] <= columns) & (columns < ends[:, None])).unsqueeze(2)
            pooled.append((known.where(counted, 0).sum(1) / (ends - first)[:, None]).cpu())
        heard.append(torch.stack(pooled, 1))
        if len(heard) == len(layers):
            every = torch.stack(heard, 1)
            # A first pass inside may only find out what the model calls; what the last one hears counts.
            heard.clear()
            on(every)

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hear(args[0] if args else kwargs["hidden_states"])

    def leaving(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        hear(output[0])

    blocks = decoder_blocks(model)
    hooks = [
        blocks[layer].register_forward_pre_hook(entering, with_kwargs=True)
        if layer < len(blocks)
        else model.base_model.register_forward_hook(leaving)
        for layer in layers
    ]
    try:
        with contextlib.suppress(_Enough):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def pooled_hidden(
    model: Any,
    documents: Sequence[Encoded | Preference],
    layers: Sequence[int],
    poolings: Sequence[Pooling],
    batch_tokens: int,
) -> Pooled:
    """The hidden states of the layers (0 is the embedding; they rise) pooled over each document's tokens, in one pass.

    Padding is left out. Of a preference pair it is the difference vector: what the text with the chosen answer has less
    what that with the rejected one has. The model runs no further than the highest of the layers.
    """
    sides = [answers(document) for document in documents]
    pooled = torch.zeros(len(documents), len(layers), len(poolings), model.config.get_text_config().hidden_size)

    def work(side: int, indices: list[int]) -> None:
        rows = [sides[index][side] for index in indices]

        def hear(states: Tensor) -> None:
            pooled[indices] += -states if side else states
            raise _Enough

        # Under the causal mask no token sees the padding, so no attention mask is needed.
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
        with pooled_states_of(model, layers, poolings, rows, hear):
            model.base_model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)

    for side in (0, 1):
        having = [index for index, own in enumerate(sides) if len(own) > side]
        in_batches([len(own[-side].ids) for own in sides], batch_tokens, partial(work, side), having)
    return pooled


def mean_hidden(
    model: Any, documents: Sequence[Encoded | Preference], layer: int, batch_tokens: int
) -> Float[Tensor, "documents width"]:
    """`pooled_hidden` of one layer, averaged over all tokens."""
    return pooled_hidden(model, documents, (layer,), ("mean",), batch_tokens)[:, 0, 0]
