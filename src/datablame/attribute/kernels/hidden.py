"""The hidden states of one layer as a model runs, and their means over the tokens of documents."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from datablame.attribute.kernels.batches import in_batches, right_padded
from datablame.models.blocks import decoder_blocks
from datablame.models.chat import Encoded, Preference


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

        ids = right_padded([document.ids for document in batch], next(model.parameters()).device)
        with hidden_states_of(model, layer, hear, stop=True):
            model.base_model(input_ids=ids, use_cache=False)

    in_batches([len(document.ids) for document in documents], batch_tokens, work)
    return mean
