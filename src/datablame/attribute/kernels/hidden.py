"""The hidden states of one layer as a model runs, and their means over tokens."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from datablame.models.blocks import decoder_blocks


class _Enough(Exception):
    """What was wanted is there; the blocks above need not run."""


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
