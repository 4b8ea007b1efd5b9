"""The loss of response tokens through the output head, at their positions only and without keeping the logits.

The head is the widest matrix of a small model: for SmolLM2-135M a float32 copy of the logits of 2,000 positions takes
400 MB, and autograd keeps it and makes two more. Here logits are formed for a few positions at a time, in one buffer.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn

from datablame.models.chat import Encoded

_BUFFERED_LOGITS = {"cpu": 1 << 23}
_BUFFERED_LOGITS_ELSEWHERE = 1 << 26
"""Logits that are formed at a time: those that a CPU's cache about holds, and enough to keep a card busy."""

_with_more_than_a_head: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Heads whose model does something to the logits afterwards (scaling, soft caps)."""


class Places(NamedTuple):
    """Padded token ids and where their response tokens are; `rows` and `columns` are those of the tokens predicted."""

    ids: Int[Tensor, "batch tokens"]
    rows: Int[Tensor, " targets"]
    columns: Int[Tensor, " targets"]

    @property
    def targets(self) -> Int[Tensor, " targets"]:
        """The response tokens."""
        return self.ids[self.rows, self.columns]


def response_places(examples: Sequence[Encoded], device: torch.device) -> Places:
    """Ids with 0 after a row's end: under the causal mask no token sees padding, so no attention mask is needed."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.tensor([[*example.ids, *[0] * (longest - len(example.ids))] for example in examples])
    rows = [row for row, example in enumerate(examples) for _ in range(example.prompt_tokens, len(example.ids))]
    columns = [column for example in examples for column in range(example.prompt_tokens, len(example.ids))]
    indices = (torch.tensor(index, dtype=torch.long) for index in (rows, columns))
    return Places(ids.to(device), *(index.to(device) for index in indices))


def response_nll(model: Any, forward: Callable[[], Any], places: Places) -> Float[Tensor, " targets"]:
    """-log p of every response token in float32, with a gradient; `forward` runs the model on `places.ids`.

    The head sees only the hidden states that predict a response token. Where the head is a frozen Linear and the
    model's logits are its outputs, which is seen at one position of every batch, a buffer of logits serves for all;
    otherwise the model's own logits are taken, whatever it does to them.
    """
    head: nn.Module = model.get_output_embeddings()
    if _may_be_split(head):
        hidden: list[Tensor] = []

        def one_position(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(inputs[0][places.rows, places.columns - 1])
            return (hidden[0][:1].detach().unsqueeze(0), *inputs[1:])

        logits = _with_hook(head, one_position, forward)
        outputs = F.linear(hidden[0][:1].detach().unsqueeze(0), head.weight, head.bias)  # type: ignore[arg-type]
        if torch.equal(outputs, logits):
            nll: Tensor = _SplitNLL.apply(hidden[0], head.weight, head.bias, places.targets)  # type: ignore[no-untyped-call]
            return nll
        _with_more_than_a_head.add(head)
    return F.cross_entropy(response_logits(model, forward, places).float(), places.targets, reduction="none")


def response_logits(model: Any, forward: Callable[[], Any], places: Places) -> Float[Tensor, "targets vocabulary"]:
    """The model's own logits from which each response token is predicted; the head sees no other position."""

    def only_predictions(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][places.rows, places.columns - 1].unsqueeze(0), *inputs[1:])

    return _with_hook(model.get_output_embeddings(), only_predictions, forward)[0]


def _may_be_split(head: nn.Module) -> bool:
    return (
        type(head) is nn.Linear
        and not any(weight.requires_grad or weight.is_meta for weight in head.parameters())
        and head not in _with_more_than_a_head
    )


def _with_hook(head: nn.Module, hook: Callable[..., Any], forward: Callable[[], Any]) -> Float[Tensor, "..."]:
    handle = head.register_forward_pre_hook(hook)
    try:
        logits: Tensor = forward().logits
    finally:
        handle.remove()
    return logits


class _SplitNLL(torch.autograd.Function):
    """-log softmax(h W^T + b)[target]; the gradient with respect to h, (softmax - one-hot) W, is formed on the way.

    log Z = max - log p_max, which is as accurate as the largest probability.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "targets width"],
        weight: Float[Tensor, "vocabulary width"],
        bias: Float[Tensor, " vocabulary"] | None,
        targets: Int[Tensor, " targets"],
    ) -> Float[Tensor, " targets"]:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        nll = torch.empty(len(targets), device=hidden.device)
        step = max(1, _BUFFERED_LOGITS.get(hidden.device.type, _BUFFERED_LOGITS_ELSEWHERE) // weight.shape[0])
        buffer = torch.empty(2, min(step, len(targets)), weight.shape[0], device=hidden.device)
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            chosen = targets[part].unsqueeze(1)
            logits, p = buffer[0, : len(chosen)], buffer[1, : len(chosen)]
            _linear(hidden[part], weight, bias, logits)
            torch.softmax(logits, 1, out=p)
            nll[part] = logits.amax(1) - p.amax(1).log() - logits.gather(1, chosen).squeeze(1)
            if gradient is not None:
                p.scatter_add_(1, chosen, p.new_full(chosen.shape, -1.0))
                gradient[part] = p.to(weight.dtype) @ weight
        ctx.gradient = gradient
        return nll

    @staticmethod
    def backward(ctx: Any, upstream: Float[Tensor, " targets"]) -> tuple[Tensor | None, None, None, None]:
        gradient = ctx.gradient
        return None if gradient is None else gradient * upstream.unsqueeze(1).to(gradient.dtype), None, None, None


def _linear(
    hidden: Float[Tensor, "targets width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    into: Float[Tensor, "targets vocabulary"],
) -> None:
    """The head's outputs, written into a float32 buffer whatever its type."""
    if bias is None and weight.dtype is torch.float32:
        torch.mm(hidden, weight.T, out=into)
    else:
        into.copy_(F.linear(hidden, weight, bias))
