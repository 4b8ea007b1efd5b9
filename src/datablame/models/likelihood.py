"""What models make of given answers: how likely their tokens are, two models' divergence, the loss of preferences.

Autograd would keep all logits and make two copies: the head sees response tokens only, a buffer holds some of them.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn

from datablame.models.chat import Encoded, Preference
from datablame.models.device import to_float64

_BUFFERED_LOGITS = {"cpu": 1 << 23}
_BUFFERED_LOGITS_ELSEWHERE = 1 << 26
"""Logits that are formed at a time: those that a CPU's cache about holds, and enough to keep a card busy."""
_LOGITS = 1 << 25
"""Logits of one batch at most that get no gradient, where an answer does not need more: 128 MiB in float32."""

_with_more_than_a_head: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Heads whose model does something to the logits afterwards (scaling, soft caps)."""


class ResponsePositions(NamedTuple):
    """Padded token ids and where their response tokens are; `rows` and `columns` are those of the tokens predicted."""

    ids: Int[Tensor, "batch tokens"]
    rows: Int[Tensor, " targets"]
    columns: Int[Tensor, " targets"]

    @property
    def targets(self) -> Int[Tensor, " targets"]:
        """The response tokens."""
        return self.ids[self.rows, self.columns]


def response_positions(examples: Sequence[Encoded], device: torch.device) -> ResponsePositions:
    """Ids with 0 after a row's end: under the causal mask no token sees padding, so no attention mask is needed."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(example.ids) for example in examples], batch_first=True)
    spans = torch.tensor([(example.prompt_tokens, len(example.ids)) for example in examples])
    columns = torch.arange(ids.shape[1])
    predicted = (spans[:, :1] <= columns) & (columns < spans[:, 1:])
    return ResponsePositions(ids.to(device), *(index.to(device) for index in predicted.nonzero(as_tuple=True)))


def response_nll(
    model: Any, positions: ResponsePositions, states: Float[Tensor, "batch tokens width"] | None = None
) -> Float[Tensor, " targets"]:
    """-log p of every response token in float32, with a gradient; `states` go into the model in place of the ids.

    Where the head is a frozen Linear and the model's logits are its outputs, which is seen at one position of every
    batch, a buffer of logits serves for all; else the model's own logits are taken, whatever it does to them.
    """
    head: nn.Module = model.get_output_embeddings()
    frozen = not any(weight.requires_grad or weight.is_meta for weight in head.parameters())
    if type(head) is nn.Linear and frozen and head not in _with_more_than_a_head:
        hidden, logits = _predictions(model, positions, states, slice(1))
        if torch.equal(F.linear(hidden[:1].detach().unsqueeze(0), head.weight, head.bias), logits):
            nll: Tensor = _SplitNLL.apply(hidden, head.weight, head.bias, positions.targets)  # type: ignore[no-untyped-call]
            return nll
        _with_more_than_a_head.add(head)
    logits = _predictions(model, positions, states)[1][0]
    return F.cross_entropy(logits.float(), positions.targets, reduction="none")


def _predictions(
    model: Any, positions: ResponsePositions, states: Tensor | None = None, probed: slice | None = None
) -> tuple[Float[Tensor, "targets width"], Float[Tensor, "1 _ vocabulary"]]:
    """The states that predict response tokens, and the model's logits of them or of the `probed`: all its head sees."""
    hidden: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden.append(inputs[0][positions.rows, positions.columns - 1])
        return ((hidden[0] if probed is None else hidden[0][probed].detach()).unsqueeze(0), *inputs[1:])

    inputs = {"input_ids": positions.ids} if states is None else {"inputs_embeds": states}
    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return hidden[0], logits


class Total(NamedTuple):
    """A sum in nats over response tokens, and how many there are."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


def negative_log_likelihood(
    model: nn.Module, examples: Sequence[Encoded], *, vocabulary_size: int, batch_tokens: int
) -> Total:
    """-log p of every response token given all before it; p is over the first `vocabulary_size` rows of the logits."""

    def nll(targets: Tensor, log_p: Tensor) -> Tensor:
        return F.nll_loss(log_p, targets.to(log_p.device), reduction="none")

    return _summed(nll, [model], examples, vocabulary_size, batch_tokens)


def divergence(
    model: nn.Module, other: nn.Module, examples: Sequence[Encoded], *, vocabulary_size: int, batch_tokens: int
) -> Total:
    """The sum over response tokens of KL(p || q) = sum_v p(v) (log p(v) - log q(v)) at each one's position.

    p is the model's next token and q the other's, over the first `vocabulary_size` rows of the logits. On outputs that
    the model drew itself the mean is the Rao-Blackwellised estimate of the divergence per token.
    """

    def kl(_: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() * (log_p - log_q.to(log_p.device))).sum(-1).clamp(min=0)

    return _summed(kl, [model, other], examples, vocabulary_size, batch_tokens)


@torch.no_grad()
def _summed(
    term: Callable[..., Tensor],
    models: Sequence[nn.Module],
    examples: Sequence[Encoded],
    vocabulary_size: int,
    batch_tokens: int,
) -> Total:
    """The sum of `term(targets, *each model's log-probabilities)`; batches hold `batch_tokens`, padding included."""
    total = Total(0.0, 0)
    ordered = sorted(examples, key=lambda answer: (len(answer.ids), answer.prompt_tokens, answer.ids))
    most = min(batch_tokens, _LOGITS // vocabulary_size)
    for indices in length_batches([len(answer.ids) for answer in ordered], most):
        log_p = []
        for model in models:
            positions = response_positions([ordered[index] for index in indices], next(model.parameters()).device)
            log_p.append(_predictions(model, positions)[1][0, :, :vocabulary_size].float().log_softmax(-1))
        terms = to_float64(term(positions.targets, *log_p))
        total = Total(total.nats + float(terms.sum()), total.tokens + len(terms))
    return total


def length_batches(
    lengths: Sequence[int], batch_tokens: int, indices: Sequence[int] | None = None, most: int | None = None
) -> list[list[int]]:
    """Indices by length, at most `most` in a batch; rows times longest row stay within the budget, but for one row."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)) if indices is None else indices, key=lengths.__getitem__):
        n = len(batches[-1]) + 1 if batches else 1
        if 1 < n <= (most or n) and n * lengths[index] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def preference_losses(
    model: nn.Module, pairs: Sequence[Preference], beta: float, n: int = 1
) -> Float[Tensor, " pairs"]:
    """-log sigmoid(beta (r - r_reference)) of each pair: direct preference optimisation (Rafailov et al. 2023).

    Length-normalised as in Tulu 3 (Lambert et al. 2024), which takes beta = 5: r are `log_ratios`, and a pair's
    `reference` is r of the model that training started from.
    """
    ratios = log_ratios(model, pairs, n)
    return -F.logsigmoid(beta * (ratios - torch.tensor([pair.reference for pair in pairs]).to(ratios)))


@torch.no_grad()
def referred(model: nn.Module, pairs: Sequence[Preference], at_once: int) -> list[Preference]:
    """The pairs with `log_ratios` of the model that training is about to start from, `at_once` at a time."""
    starts = range(0, len(pairs), at_once)
    ratios = [ratio for start in starts for ratio in log_ratios(model, pairs[start : start + at_once]).tolist()]
    return [pair._replace(reference=ratio) for pair, ratio in zip(pairs, ratios, strict=True)]


def log_ratios(model: nn.Module, pairs: Sequence[Preference], n: int = 1) -> Float[Tensor, " pairs"]:
    """The ratios r = 1/|chosen| log p(chosen | prompt) - 1/|rejected| log p(rejected | prompt) of pairs, in nats.

    The rows of each of `n` consecutive runs of pairs stay together.
    """
    run = len(pairs) // n
    runs = [pairs[start : start + run] for start in range(0, len(pairs), run)]
    answers = [answer for some in runs for answer in (*(p.chosen for p in some), *(p.rejected for p in some))]
    positions = response_positions(answers, next(model.parameters()).device)
    nll = response_nll(model, positions)
    tokens = torch.bincount(positions.rows, minlength=len(answers))
    log_p = (-nll.new_zeros(len(answers)).index_add(0, positions.rows, nll) / tokens).view(n, 2, run)
    return (log_p[:, 0] - log_p[:, 1]).reshape(-1)


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
            if bias is None and weight.dtype is torch.float32:
                torch.mm(hidden[part], weight.T, out=logits)
            else:
                logits.copy_(F.linear(hidden[part], weight, bias))
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
