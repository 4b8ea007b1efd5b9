"""What models make of given answers: how likely their tokens are, and how far two models' next tokens are apart."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn

from datablame.models.chat import Encoded
from datablame.models.device import to_float64
from datablame.models.head import response_logits, response_places

_LOGITS = 1 << 25
"""Logits of one batch at most, where a single answer does not need more: 128 MiB in float32."""


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

    def of(batch: Sequence[Encoded]) -> Tensor:
        logits, targets = _predicted(model, batch, vocabulary_size)
        return F.cross_entropy(logits, targets.to(logits.device), reduction="none")

    return _summed(of, examples, vocabulary_size, batch_tokens)


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
    logits = response_logits(model, lambda: model(input_ids=places.ids, use_cache=False), places)
    return logits[:, :vocabulary_size].float(), places.targets


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
