"""A decoder's blocks: where they are, the middle ones, and the frozen ones below the trained, run once a document."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.chat import Encoded

_ROWS = 16
_TOLERANCE = 1e-4


def decoder_blocks(model: Any) -> list[nn.Module]:
    """The text decoder's blocks from input to output, as many as its config says; ValueError where there is no list."""
    return list(_stack(model)[1])


def middle_blocks(n: int) -> list[int]:
    """The blocks 8 to 12 of 16, the same fractions of `n` otherwise; the only one of one."""
    return [block for block in range(n) if 8 / 16 <= block / n <= 12 / 16] or [0]


def activation_layer(n: int) -> int:
    """The index into the hidden states (0 is the embedding) of layer 10 of 16, the same fraction of `n` otherwise."""
    return round(10 / 16 * n)


@dataclass(frozen=True)
class Trunk:
    """A model's blocks below `lowest`, and what they make of the documents, kept in the machine's own memory."""

    model: Any
    lowest: int
    states: Mapping[tuple[int, ...], Tensor]

    def padded(self, examples: Sequence[Encoded]) -> Float[Tensor, "batch tokens width"]:
        """What enters block `lowest`, zeros after a row's end; KeyError of a document not given to `trunk_below`."""
        rows = [self.states[tuple(example.ids)] for example in examples]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)

    def cut_off(self) -> AbstractContextManager[nn.ModuleList]:
        """Inside, the model has only the blocks from `lowest` on, and takes their input as `inputs_embeds`."""
        return _only(self.model, slice(self.lowest, None))


@torch.no_grad()
def trunk_below(model: Any, lowest: int, documents: Sequence[Encoded]) -> Trunk | None:
    """The trunk of all documents; None where nothing is below, or where the model cannot be cut without a difference.

    Some architectures scale embeddings or tell their blocks apart by number: the longest document is run both ways.
    """
    if lowest <= 0 or not documents:
        return None
    distinct = {tuple(document.ids): document for document in documents}
    ordered = sorted(distinct, key=lambda ids: (len(ids), ids))
    states: dict[tuple[int, ...], Tensor] = {}
    outputs: list[Any] = []
    for start in range(0, len(ordered), _ROWS):
        batch = ordered[start : start + _ROWS]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], batch_first=True).to(model.device)
        with _only(model, slice(lowest)) as below:
            hook = below[-1].register_forward_hook(lambda _, __, output: outputs.append(output))
            try:
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
            finally:
                hook.remove()
        output = outputs.pop()
        rows = output[0] if isinstance(output, tuple) else output
        states |= {row: state[: len(row)].to("cpu", copy=True) for row, state in zip(batch, rows, strict=True)}
    trunk, probe = Trunk(model, lowest, states), distinct[ordered[-1]]
    whole = model(input_ids=torch.tensor([probe.ids], device=model.device), use_cache=False).logits.float()
    try:
        with trunk.cut_off():
            cut = model(inputs_embeds=trunk.padded([probe]), use_cache=False).logits.float()
    except (TypeError, ValueError, IndexError, RuntimeError):
        return None
    return trunk if (whole - cut).abs().max() <= _TOLERANCE * whole.abs().max().clamp(min=1) else None


@contextmanager
def _only(model: Any, chosen: slice) -> Iterator[nn.ModuleList]:
    """The model with some of its decoder blocks, which it gives; all are back afterwards."""
    name, blocks = _stack(model)
    left = nn.ModuleList(list(blocks)[chosen])
    model.set_submodule(name, left)
    try:
        yield left
    finally:
        model.set_submodule(name, blocks)


def _stack(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name in the model: of the lists of that length the outermost."""
    decoder, config = model.get_decoder(), model.config.get_text_config(decoder=True)
    if decoder is model.get_output_embeddings():
        # ModernBERT's decoder calls its head so.
        decoder = model.base_model
    inside = {id(module) for module in decoder.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers and id(module) in inside:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {config.num_hidden_layers} decoder blocks")
