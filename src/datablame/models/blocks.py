"""A decoder's blocks: where they are, the middle ones, and the frozen ones below the trained, run once a document."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.chat import Encoded

_ROWS = 16
_TOLERANCE = 1e-4


def decoder_blocks(model: Any) -> list[nn.Module]:
    """The decoder blocks from input to output: the longest list of modules of one class inside the model."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    alike = [blocks for blocks in lists if len({type(block) for block in blocks}) == 1]
    if not alike:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks")
    return max(alike, key=len)


def middle_blocks(n: int) -> list[int]:
    """The blocks 8 to 12 of 16, the same fractions of `n` otherwise."""
    return [block for block in range(n) if 8 / 16 <= block / n <= 12 / 16]


def activation_layer(n: int) -> int:
    """The index into the hidden states (0 is the embedding) of layer 10 of 16, the same fraction of `n` otherwise."""
    return round(10 / 16 * n)


class Trunk:
    """A model's blocks below `lowest`, and what they make of the documents, kept in the machine's own memory."""

    def __init__(self, model: Any, lowest: int, states: Mapping[tuple[int, ...], Tensor]) -> None:
        self._model, self._lowest, self._states = model, lowest, states

    def padded(self, examples: Sequence[Encoded]) -> Float[Tensor, "batch tokens width"]:
        """What enters block `lowest`, zeros after a row's end; KeyError of a document not given to `trunk_below`."""
        rows = [self._states[tuple(example.ids)] for example in examples]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._model.device)

    def cut_off(self) -> AbstractContextManager[None]:
        """Inside, the model has only the blocks from `lowest` on, and takes their input as `inputs_embeds`."""
        return _only(self._model, slice(self._lowest, None))


@torch.no_grad()
def trunk_below(model: Any, lowest: int, documents: Sequence[Encoded]) -> Trunk | None:
    """The trunk of all documents; None where nothing is below, or where the model cannot be cut without a difference.

    Some architectures scale embeddings or tell their blocks apart by number: the longest document is run both ways, and
    where the logits differ the whole model has to run at every step.
    """
    if lowest <= 0 or not documents:
        return None
    distinct = {tuple(document.ids): document for document in documents}
    ordered = sorted(distinct, key=lambda ids: (len(ids), ids))
    states: dict[tuple[int, ...], Tensor] = {}
    for start in range(0, len(ordered), _ROWS):
        batch = ordered[start : start + _ROWS]
        for ids, row in zip(batch, _entering(model, lowest, batch), strict=True):
            states[ids] = row[: len(ids)].to("cpu", copy=True)
    trunk = Trunk(model, lowest, states)
    return trunk if _agrees(model, trunk, distinct[ordered[-1]]) else None


def _entering(model: Any, lowest: int, batch: Sequence[tuple[int, ...]]) -> Float[Tensor, "batch tokens width"]:
    """What the last block below `lowest` gives out."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], batch_first=True).to(model.device)
    states: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with _only(model, slice(lowest)):
        hook = decoder_blocks(model)[-1].register_forward_hook(keep)
        try:
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
        finally:
            hook.remove()
    return states[0]


def _agrees(model: Any, trunk: Trunk, probe: Encoded) -> bool:
    whole = model(input_ids=torch.tensor([probe.ids], device=model.device), use_cache=False).logits
    try:
        with trunk.cut_off():
            cut = model(inputs_embeds=trunk.padded([probe]), use_cache=False).logits
    except (TypeError, ValueError, IndexError, RuntimeError):
        return False
    scale = whole.float().abs().max().clamp(min=1)
    return bool((whole.float() - cut.float()).abs().max() <= _TOLERANCE * scale)


@contextmanager
def _only(model: Any, chosen: slice) -> Iterator[None]:
    """The model with some of its decoder blocks; all are back afterwards."""
    blocks = decoder_blocks(model)
    owner, name = next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and list(child) == blocks
    )
    whole = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(blocks[chosen]))
    try:
        yield
    finally:
        setattr(owner, name, whole)
