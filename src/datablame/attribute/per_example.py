"""Loss gradients of single documents, compared with directions without being stored, many documents in one pass.

For a Linear layer y = x W^T the gradient of a document's loss is G^T A, a sum over its tokens t of the outer products
of the output's gradient G_t and the input A_t (Goodfellow 2015). Hooks collect both; with frozen weights the backward
pass computes nothing else, and it ends at the lowest of the chosen blocks. A preference pair's loss is NLL(chosen) -
NLL(rejected): its gradient is the same sum over the tokens of both answers, G negated at those of the rejected one.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn

from datablame.attribute.batches import in_batches, right_padded
from datablame.models.blocks import decoder_blocks
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import holding, wide, with_float64

__all__ = [
    "Directions",
    "Similarities",
    "contributions",
    "directions",
    "gradient_of",
    "linears",
    "mean_units",
    "similarities",
]

Directions = Mapping[str, Float[Tensor, "behaviours outputs inputs"]]
"""For each Linear layer the mean over a behaviour's queries of their unit gradients."""

_FLOAT16_SCALE = 2.0**8
_HELD_NUMBERS = 1 << 24
"""Gradients of single documents that are formed at a time hold at most this many numbers (or one document's)."""


class Similarities(NamedTuple):
    """Of every document: its gradient's dot products with the directions and norm, its loss (nats) and loss tokens.

    Of a preference pair the loss is the chosen answer's less the rejected one's, and the tokens are those of both.
    """

    dots: Float[Tensor, "documents behaviours"]
    norms: Float[Tensor, " documents"]
    losses: Float[Tensor, " documents"]
    tokens: Int[Tensor, " documents"]


def linears(model: Any, blocks: Sequence[int]) -> dict[str, nn.Linear]:
    """The Linear layers of the chosen decoder blocks by BLOCK.NAME.

    Raises:
        ValueError: a block has none.
    """
    stack = decoder_blocks(model)
    found = {}
    for block in sorted(set(blocks)):
        own = {f"{block}.{name}": layer for name, layer in stack[block].named_modules() if isinstance(layer, nn.Linear)}
        if not own:
            raise ValueError(f"decoder block {block} of {type(model).__name__} has no Linear layer")
        found.update(own)
    return found


def directions(model: Any, queries: Sequence[Sequence[Encoded]], blocks: Sequence[int]) -> Directions:
    """For each behaviour's queries the mean of their gradients, each scaled to unit norm over all layers together."""
    return mean_units(functools.partial(gradient_of, model, blocks=blocks), queries, linears(model, blocks))


def gradient_of(model: Any, query: Encoded, blocks: Sequence[int]) -> dict[str, Float[Tensor, "outputs inputs"]]:
    """The gradient of one query's mean NLL over its response, by layer."""
    gradient: dict[str, Tensor] = {}

    def keep(name: str, inputs: Tensor, deltas: Tensor) -> None:
        gradient[name] = deltas[0].T @ inputs[0]

    _pass(model, [query], blocks, keep)
    return gradient


def mean_units(
    gradient: Callable[[Encoded], Mapping[str, Tensor]],
    queries: Sequence[Sequence[Encoded]],
    layers: Mapping[str, nn.Linear],
) -> Directions:
    """For each behaviour's queries the mean of what `gradient` makes of them, scaled to unit norm over all layers."""
    numbers = len(queries) * sum(layer.weight.numel() for layer in layers.values())
    device = holding(4 * numbers, next(iter(layers.values())).weight.device)
    means = {name: torch.zeros(len(queries), *layer.weight.shape, device=device) for name, layer in layers.items()}
    for behaviour, own in enumerate(queries):
        for query in own:
            parts = gradient(query)
            norm = torch.stack([wide(part).pow(2).sum() for part in parts.values()]).sum().sqrt()
            if norm > 0:
                for name, part in parts.items():
                    means[name][behaviour] += (part / (norm * len(own)).float().to(part.device)).to(device)
    return means


def similarities(
    model: Any,
    documents: Sequence[Encoded | Preference],
    directions: Directions,
    blocks: Sequence[int],
    batch_tokens: int,
) -> Similarities:
    """The gradient of each document's mean NLL over its response, compared with the directions; in document order.

    Of a preference pair it is the gradient of NLL(chosen) - NLL(rejected). Exact up to rounding and independent of the
    batches: no projection, no approximation.

    Raises:
        PhaseError: a single document does not fit in memory.
    """
    behaviours = next(iter(directions.values())).shape[0]
    dots = torch.zeros(len(documents), behaviours, dtype=torch.float64)
    squares = torch.zeros(len(documents), dtype=torch.float64)
    losses = torch.zeros(len(documents), dtype=torch.float64)

    def work(places: list[int]) -> None:
        device = with_float64(next(model.parameters()).device)
        batch_dots = torch.zeros(len(places), behaviours, dtype=torch.float64, device=device)
        batch_squares = torch.zeros(len(places), dtype=torch.float64, device=device)
        sides = list(zip(*(answers(documents[place]) for place in places), strict=True))

        def add(name: str, inputs: Tensor, deltas: Tensor) -> None:
            if len(sides) == 2:
                inputs, deltas = _joined(inputs, deltas)
            of_dots, of_squares = contributions(inputs, deltas, directions[name].to(inputs.device))
            batch_dots.add_(of_dots)
            batch_squares.add_(of_squares)

        batch_losses = _pass(model, [answer for side in sides for answer in side], blocks, add).cpu()
        dots[places], squares[places] = batch_dots.cpu(), batch_squares.cpu()
        chosen, *rejected = batch_losses.split(len(places))
        losses[places] = chosen - sum(rejected)

    for number in (1, 2):
        alike = [place for place, document in enumerate(documents) if len(answers(document)) == number]
        lengths = [number * max(len(answer.ids) for answer in answers(documents[place])) for place in alike]

        def chosen_places(chosen: list[int], alike: list[int] = alike) -> None:
            work([alike[place] for place in chosen])

        in_batches(lengths, batch_tokens, chosen_places)
    tokens = [sum(len(each.ids) - each.prompt_tokens for each in answers(document)) for document in documents]
    return Similarities(dots, squares.clamp_min(0).sqrt(), losses, torch.tensor(tokens, dtype=torch.long))


def _joined(
    inputs: Float[Tensor, "answers tokens inputs"], deltas: Float[Tensor, "answers tokens outputs"]
) -> tuple[Float[Tensor, "pairs both_tokens inputs"], Float[Tensor, "pairs both_tokens outputs"]]:
    """The rows of the chosen answers, each followed by its rejected one's tokens with the sign of the loss turned."""
    (chosen, rejected), (up, down) = inputs.chunk(2), deltas.chunk(2)
    return torch.cat([chosen, rejected], 1), torch.cat([up, -down], 1)


def contributions(
    inputs: Float[Tensor, "batch tokens inputs"],
    deltas: Float[Tensor, "batch tokens outputs"],
    directions: Float[Tensor, "behaviours outputs inputs"],
) -> tuple[Float[Tensor, "batch behaviours"], Float[Tensor, " batch"]]:
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
        return _from_factors(inputs, deltas, directions)
    flat = directions.flatten(1)
    step = max(1, _HELD_NUMBERS // size)
    parts = []
    for start in range(0, batch, step):
        formed = (deltas[start : start + step].transpose(1, 2) @ inputs[start : start + step]).flatten(1)
        parts.append((formed @ flat.T, torch.linalg.vector_norm(formed, dim=1)))
    return wide(torch.cat([dots for dots, _ in parts])), wide(torch.cat([norms for _, norms in parts])).pow(2)


def _from_factors(
    inputs: Float[Tensor, "batch tokens inputs"],
    deltas: Float[Tensor, "batch tokens outputs"],
    directions: Float[Tensor, "behaviours outputs inputs"],
) -> tuple[Float[Tensor, "batch behaviours"], Float[Tensor, " batch"]]:
    """Dot products and squared norms without forming a gradient, the dots on the side of the narrower factor."""
    if directions.shape[1] <= directions.shape[2]:
        dots = [((inputs @ each.T) * deltas).sum((1, 2)) for each in directions]
    else:
        dots = [((deltas @ each) * inputs).sum((1, 2)) for each in directions]
    grams = (inputs @ inputs.transpose(1, 2)) * (deltas @ deltas.transpose(1, 2))
    return wide(torch.stack(dots, 1)), wide(grams.sum((1, 2)))


def _pass(
    model: Any, documents: Sequence[Encoded], blocks: Sequence[int], on: Callable[[str, Tensor, Tensor], None]
) -> Float[Tensor, " documents"]:
    """One forward and backward pass: `on(layer, inputs, output gradients)` for each layer; returns the losses.

    Where weights are float16 the loss is scaled on its way back, for most of its gradient would be zero otherwise.
    """
    device = next(model.parameters()).device
    scale = _FLOAT16_SCALE if model.dtype is torch.float16 else 1.0
    ids = right_padded([document.ids for document in documents], device)
    places = [
        (row, column)
        for row, document in enumerate(documents)
        for column in range(document.prompt_tokens, len(document.ids))
    ]
    rows, columns = torch.tensor(places, device=device).T
    counts = torch.bincount(rows, minlength=len(documents))

    def only_predictions(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns - 1].unsqueeze(0), *inputs[1:])

    def unscaled(name: str, inputs: Tensor, deltas: Tensor) -> None:
        on(name, inputs, deltas if scale == 1 else deltas / scale)

    with _observed(model, blocks, unscaled), torch.enable_grad():
        hook = model.get_output_embeddings().register_forward_pre_hook(only_predictions)
        try:
            logits = model(input_ids=ids, use_cache=False).logits[0]
        finally:
            hook.remove()
        nll = F.cross_entropy(logits.float(), ids[rows, columns], reduction="none")
        loss = (nll / counts[rows]).sum()
        (loss if scale == 1 else loss * scale).backward()
    details = wide(nll.detach())
    summed = details.new_zeros(len(documents))
    losses: Tensor = summed.index_add(0, rows.to(details.device), details) / counts.to(details.device)
    return losses


@contextlib.contextmanager
def _observed(model: Any, blocks: Sequence[int], on: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Weights frozen, the graph cut below the lowest block, and `on` called as each layer's gradient arrives."""

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].detach().requires_grad_(True), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_(True)}

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = args[0].detach().float()
            if inputs.ndim != 3:
                raise ValueError(f"{name} sees {inputs.ndim} axes, not (batch, tokens, width); leave its block out")
            output.register_hook(lambda gradient: on(name, inputs, gradient.detach().float()))

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
