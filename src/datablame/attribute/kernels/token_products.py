"""How much each token of an answer adds to the dot product of its gradient with a direction.

An answer's loss is the mean of its tokens' NLL_t, so its gradient is the sum of theirs, and <v, g> the sum of the
derivatives of NLL_t / n along v. One pass forward gives all of them: the output of a product y = x W^T moves by x V^T,
beside what its input's movement brings about (forward-mode differentiation), and NLL_t by <dNLL_t / dh_t, movement of
h_t>, with h_t what the head sees. Exact, in two passes and one for each direction.

Some models have an operation without a derivative in forward mode (Bloom, RecurrentGemma): they are refused.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from datablame.attribute.kernels.hooks import in_batches
from datablame.attribute.kernels.per_example import Directions, Documents, similarities
from datablame.errors import PhaseError
from datablame.models.chat import Encoded, answers
from datablame.models.experts import Routing, multiplied
from datablame.models.likelihood import ResponsePositions, response_nll, response_positions
from datablame.models.products import listening

_TOLERANCE = 1e-3
TokenShares = list[Float[Tensor, "directions tokens"]]
"""A document's: of its response tokens; of a pair of the chosen answer's and of the rejected one's."""


def token_shares(
    model: Any, documents: Documents, towards: Directions, blocks: Sequence[int], batch_tokens: int
) -> list[TokenShares]:
    """What each token adds to <v, g> / ||g||, with v a direction and g the document's gradient, as in `similarities`.

    Raises:
        NotImplementedError: the model has an operation without a derivative in forward mode.
        PhaseError: a single document does not fit in memory, or the sums are not what a backward pass gives.
    """
    whole = similarities(model, documents, towards, blocks, batch_tokens)
    every = iter(token_products(model, [a for each in documents for a in answers(each)], towards, blocks, batch_tokens))
    parts = [[sign * next(every) for sign, _ in zip((1, -1), answers(each), strict=False)] for each in documents]
    joined = [torch.cat(of_document, 1).double() for of_document in parts]
    errors, sizes = torch.stack([each.sum(1) for each in joined]) - whole.dots, [each.abs().sum() for each in joined]
    if float(errors.abs().sum()) > _TOLERANCE * float(sum(sizes)):
        raise PhaseError("derivatives in forward mode are not those of a backward pass")
    scales = [1 / norm if norm > 0 else 0.0 for norm in whole.norms.tolist()]
    return [[part * scale for part in of_document] for of_document, scale in zip(parts, scales, strict=True)]


def token_products(
    model: Any, texts: Sequence[Encoded], towards: Directions, blocks: Sequence[int], batch_tokens: int
) -> list[Float[Tensor, "directions tokens"]]:
    """Of each text the dot products of its response tokens' parts of the gradient, which add up to the whole's.

    NotImplementedError where the model has an operation without a derivative in forward mode, PhaseError where a single
    text does not fit in memory.
    """
    n = len(next(iter(towards.values())))
    device = next(model.parameters()).device
    found = [torch.zeros(n, len(text.ids) - text.prompt_tokens) for text in texts]

    def work(indices: list[int]) -> None:
        positions = response_positions([texts[index] for index in indices], device)
        slopes, counts = _slopes(model, positions), [found[index].shape[1] for index in indices]
        for direction in range(n):
            moved = _moved(model, positions, {name: part[direction] for name, part in towards.items()}, blocks)
            parts = (slopes * moved).sum(1).cpu().split(counts)
            for index, part in zip(indices, parts, strict=True):
                found[index][direction] = part / len(part)

    in_batches([len(text.ids) for text in texts], batch_tokens, work)
    return found


def _slopes(model: Any, positions: ResponsePositions) -> Float[Tensor, "targets width"]:
    """dNLL_t / dh_t of every response token."""
    seen = list[Tensor]()

    def cut(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0].detach().requires_grad_())
        return (seen[-1], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(cut)
    try:
        with torch.enable_grad():
            nll = response_nll(model, positions)
            (slopes,) = torch.autograd.grad(nll.sum(), seen[-1])
    finally:
        handle.remove()
    return slopes[positions.rows, positions.columns - 1]


@torch.no_grad()
def _moved(
    model: Any, positions: ResponsePositions, direction: dict[str, Tensor], blocks: Sequence[int]
) -> Float[Tensor, "targets width"]:
    """How what the head sees at the response tokens moves along the direction."""
    seen = list[Tensor]()

    def hear(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, movement = forward_ad.unpack_dual(inputs[0])
        seen.append((torch.zeros_like(states) if movement is None else movement)[positions.rows, positions.columns - 1])
        return (states[:1, :1], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hear)
    try:
        # Fused attention has no derivative in forward mode.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _moving(model, direction, blocks):
            model(input_ids=positions.ids, use_cache=False)
    finally:
        handle.remove()
    return seen[-1]


def _moving(model: Any, direction: dict[str, Tensor], blocks: Sequence[int]) -> AbstractContextManager[None]:
    """Inside, each product's weights move along the direction."""

    def along(name: str, inputs: Tensor) -> Tensor:
        plain: Tensor = forward_ad.unpack_dual(inputs).primal
        return plain @ direction[name].to(plain.device).T

    def moved(outputs: Tensor, by: Tensor) -> Tensor:
        plain, movement = forward_ad.unpack_dual(outputs)
        both: Tensor = forward_ad.make_dual(plain, by if movement is None else movement + by)
        return both

    def observe(name: str, _: nn.Module, args: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        return moved(outputs, along(name, args[0]))

    def observed(name: str, module: Any, parameter: str, inputs: Tensor, routing: Routing) -> Tensor:
        counts = routing.by_expert(getattr(module, parameter).shape[0])
        parts = [along(f"{name}.{parameter}.{expert}", rows) for expert, rows in enumerate(inputs.split(counts))]
        return moved(multiplied(module, parameter, inputs, routing), torch.cat(parts))

    return listening(model, blocks, observe, observed)
