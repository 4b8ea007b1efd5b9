"""What models make of given answers: how likely their tokens are, two models' divergence, the loss of preferences.

The head is the widest matrix of a small model: for SmolLM2-135M a float32 copy of the logits of 2,000 positions takes
400 MB, and autograd keeps it and makes two more. Here the head sees the positions of response tokens only, and for a
gradient logits are formed for a few of them at a time, in one buffer.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
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
    ids = nn.utils.rnn.pad_sequence([torch.tensor(example.ids) for example in examples], batch_first=True)
    rows = [row for row, example in enumerate(examples) for _ in range(example.prompt_tokens, len(example.ids))]
    columns = [column for example in examples for column in range(example.prompt_tokens, len(example.ids))]
    indices = (torch.tensor(index, dtype=torch.long) for index in (rows, columns))
    return Places(ids.to(device), *(index.to(device) for index in indices))


def response_nll(
    model: Any, places: Places, states: Float[Tensor, "batch tokens width"] | None = None
) -> Float[Tensor, " targets"]:
    """-log p of every response token in float32, with a gradient; `states` go into the model in place of the ids.

    The head sees only the hidden states that predict a response token. Where the head is a frozen Linear and the
    model's logits are its outputs, which is seen at one position of every batch, a buffer of logits serves for all;
    otherwise the model's own logits are taken, whatever it does to them.
    """
    head: nn.Module = model.get_output_embeddings()
    frozen = not any(weight.requires_grad or weight.is_meta for weight in head.parameters())
    if type(head) is nn.Linear and frozen and head not in _with_more_than_a_head:
        hidden: list[Tensor] = []

        def one_position(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(inputs[0][places.rows, places.columns - 1])
            return (hidden[0][:1].detach().unsqueeze(0), *inputs[1:])

        logits = _logits(model, places, states, one_position)
        outputs = F.linear(hidden[0][:1].detach().unsqueeze(0), head.weight, head.bias)
        if torch.equal(outputs, logits):
            nll: Tensor = _SplitNLL.apply(hidden[0], head.weight, head.bias, places.targets)  # type: ignore[no-untyped-call]
            return nll
        _with_more_than_a_head.add(head)
    return F.cross_entropy(response_logits(model, places, states).float(), places.targets, reduction="none")


def response_logits(
    model: Any, places: Places, states: Float[Tensor, "batch tokens width"] | None = None
) -> Float[Tensor, "targets vocabulary"]:
    """The model's own logits from which each response token is predicted; the head sees no other position."""

    def only_predictions(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][places.rows, places.columns - 1].unsqueeze(0), *inputs[1:])

    return _logits(model, places, states, only_predictions)[0]


def _logits(model: Any, places: Places, states: Tensor | None, hook: Callable[..., Any]) -> Float[Tensor, "..."]:
    """The logits of what the hook lets the head see."""
    inputs = {"input_ids": places.ids} if states is None else {"inputs_embeds": states}
    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits


class Total(NamedTuple):
    """A sum in nats over response tokens, and how many there are."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


@torch.no_grad()
def negative_log_likelihood(
    model: nn.Module, examples: Sequence[Encoded], *, vocabulary_size: int, batch_tokens: int
) -> Total:
    """-log p of every response token given all before it; p is over the first `vocabulary_size` rows of the logits.

    Batches hold at most `batch_tokens`, padding included; the result does not depend on them beyond rounding.
    """

    def nll(batch: Sequence[Encoded]) -> Tensor:
        logits, targets = _predicted(model, batch, vocabulary_size)
        return F.cross_entropy(logits, targets.to(logits.device), reduction="none")

    return _summed(nll, examples, vocabulary_size, batch_tokens)


@torch.no_grad()
def divergence(
    model: nn.Module, other: nn.Module, examples: Sequence[Encoded], *, vocabulary_size: int, batch_tokens: int
) -> Total:
    """The sum over response tokens of KL(p || q) = sum_v p(v) (log p(v) - log q(v)) at each one's position.

    p is the model's next token and q the other's, over the first `vocabulary_size` rows of the logits. On outputs that
    the model drew itself the mean is the Rao-Blackwellised estimate of the divergence per token: the vocabulary is
    summed over, not sampled. Each position's term is at least 0, and 0 where both give the same logits.
    """

    def of(batch: Sequence[Encoded]) -> Tensor:
        log_p, log_q = (_predicted(network, batch, vocabulary_size)[0].log_softmax(-1) for network in (model, other))
        log_q = log_q.to(log_p.device)
        return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)

    return _summed(of, examples, vocabulary_size, batch_tokens)


def _predicted(
    model: nn.Module, examples: Sequence[Encoded], vocabulary_size: int
) -> tuple[Float[Tensor, "targets vocabulary"], Int[Tensor, " targets"]]:
    """The logits from which each response token is predicted, and these tokens."""
    places = response_places(examples, next(model.parameters()).device)
    return response_logits(model, places)[:, :vocabulary_size].float(), places.targets


def _summed(
    of: Callable[[Sequence[Encoded]], Tensor], examples: Sequence[Encoded], vocabulary_size: int, batch_tokens: int
) -> Total:
    nats, tokens = 0.0, 0
    for batch in _batches(examples, min(batch_tokens, _LOGITS // vocabulary_size)):
        terms = to_float64(of(batch))
        nats += float(terms.sum())
        tokens += len(terms)
    return Total(nats, tokens)


def _batches(examples: Sequence[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    """Neighbours in length together, as many as the budget allows and at least one."""
    batch: list[Encoded] = []
    for example in sorted(examples, key=lambda answer: (len(answer.ids), answer.prompt_tokens, answer.ids)):
        if batch and (len(batch) + 1) * len(example.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def preference_losses(
    model: nn.Module, pairs: Sequence[Preference], beta: float, n: int = 1
) -> Float[Tensor, " pairs"]:
    """-log sigmoid(beta (r - r_reference)) of each pair: direct preference optimisation (Rafailov et al. 2023).

    In Tulu 3's length-normalised form (Lambert et al. 2024), which takes beta = 5:
    r = 1/|chosen| log p(chosen | prompt) - 1/|rejected| log p(rejected | prompt): each answer's log-probability (nats)
    is divided by its tokens, so that a long answer does not count for more. A pair's `reference` is r of the model that
    training started from. Untouched, a model has the loss log 2.
    """
    ratios = log_ratios(model, pairs, n)
    references = torch.tensor([pair.reference for pair in pairs]).to(ratios)
    return -F.logsigmoid(beta * (ratios - references))


@torch.no_grad()
def referred(model: nn.Module, pairs: Sequence[Preference], at_once: int) -> list[Preference]:
    """The pairs with `log_ratios` of the model that training is about to start from, `at_once` at a time."""
    starts = range(0, len(pairs), at_once)
    ratios = [ratio for start in starts for ratio in log_ratios(model, pairs[start : start + at_once]).tolist()]
    return [pair._replace(reference=ratio) for pair, ratio in zip(pairs, ratios, strict=True)]


def log_ratios(model: nn.Module, pairs: Sequence[Preference], n: int = 1) -> Float[Tensor, " pairs"]:
    """For each pair the mean log-probability (nats) of the chosen answer's tokens less that of the rejected one's.

    The output head is given only the hidden states that predict a token of an answer. The rows of each of `n`
    consecutive runs of pairs stay together.
    """
    run = len(pairs) // n
    runs = [pairs[start : start + run] for start in range(0, len(pairs), run)]
    answers = [answer for some in runs for answer in (*(p.chosen for p in some), *(p.rejected for p in some))]
    places = response_places(answers, next(model.parameters()).device)
    nll = response_nll(model, places)
    tokens = torch.bincount(places.rows, minlength=len(answers))
    log_p = (-nll.new_zeros(len(answers)).index_add(0, places.rows, nll) / tokens).view(n, 2, run)
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
