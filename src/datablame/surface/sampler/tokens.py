"""How a token is sampled from two models' logits: amplified, cut, then the inverse CDF at a given uniform."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 256
"""Entries of the vocabulary that are summed in float32; the sums of blocks are cumulated in float64."""
_FIRST_SORTED = 256
"""Top-p is decided among so many most probable tokens, and where their mass is too small among eight times as many."""
_BUFFER_BYTES = {"cpu": 1 << 21}
_BUFFER_BYTES_ELSEWHERE = 1 << 28
"""The one float32 buffer: on a CPU it stays in the cache of the core."""

NOT_FINITE = -2
"""In place of a token where logits are infinite or no numbers."""

Logits = Float[Tensor, "rows vocabulary"]
Buffer = Float[Tensor, "rows padded"]
PerRow = Float[Tensor, " rows"]
Column = Float[Tensor, "rows 1"]
Tokens = Int[Tensor, " rows"]


@dataclass(frozen=True)
class Settings:
    """How a token is sampled from amplified logits, in this order: plausibility, temperature, top-k, top-p, min-p."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    plausibility: float = 0.0

    @property
    def untruncated(self) -> bool:
        """Whether samples come from q_alpha itself, so that importance weights from log q_k are exact."""
        return self.temperature == 1 and self.top_p == 1 and not (self.top_k or self.min_p or self.plausibility)


def sample_token(a: Logits, b: Logits | None, alpha: PerRow, uniform: PerRow, settings: Settings) -> Tokens:
    """The first token whose cumulative probability exceeds the row's uniform; the most probable at temperature 0.

    `NOT_FINITE` in a row whose largest logit is not.
    The logits are those of after and before (left out where every alpha is 0), of any type, and mixed in float32.
    """

    def tokens(buffer: Tensor, rows: slice) -> Tensor:
        mixed = _amplified(buffer, a[rows], None if b is None else b[rows], alpha[rows, None])
        return _tokens_at(buffer, mixed, a[rows], uniform[rows], settings)

    return _by_rows(a, tokens)


def token_log_probabilities(
    a: Logits, b: Logits, tokens: Tokens, alphas: Sequence[float], own: PerRow | None = None
) -> Float[Tensor, "rows terms"]:
    """The tokens' log p_after, log p_before and log q_k = log softmax(a + alphas[k] (a - b)), in float64.

    With `own`, an alpha for each row, log q at it comes last.
    """

    def terms(buffer: Tensor, rows: slice) -> Tensor:

        def log_probability(mixed: Tensor) -> Tensor:
            at = mixed.gather(-1, tokens[rows, None].clamp(min=0)).double()
            top = mixed.amax(-1, keepdim=True)
            total = mixed.sub_(top).exp_().sum(-1, keepdim=True, dtype=torch.float64)
            return at - top.double() - total.log()

        after, before = (log_probability(_amplified(buffer, each[rows], None, 0.0)) for each in (a, b))
        others = {alpha: log_probability(_amplified(buffer, a[rows], b[rows], alpha)) for alpha in alphas if alpha}
        last = [] if own is None else [log_probability(_amplified(buffer, a[rows], b[rows], own[rows, None]))]
        return torch.cat([after, before, *(others.get(alpha, after) for alpha in alphas), *last], -1)

    return _by_rows(a, terms)


def _by_rows(a: Tensor, work: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """`work` on some rows after the others, each time with a float32 buffer whose width is a multiple of a block."""
    rows, width = a.shape
    padded = -(-width // _BLOCK) * _BLOCK
    step = max(1, min(rows, _BUFFER_BYTES.get(a.device.type, _BUFFER_BYTES_ELSEWHERE) // (4 * padded)))
    buffer = torch.zeros(step, padded, device=a.device)
    return torch.cat(
        [work(buffer[: min(step, rows - start)], slice(start, start + step)) for start in range(0, rows, step)]
    )


def _amplified(buffer: Buffer, a: Logits, b: Logits | None, alpha: Column | float) -> Logits:
    """The float32 logits a + alpha (a - b), written into the buffer."""
    mixed = buffer[:, : a.shape[-1]].copy_(a)
    return mixed if b is None else mixed.sub_(b).mul_(alpha).add_(a)


def _tokens_at(buffer: Buffer, mixed: Logits, a: Logits, uniform: PerRow, settings: Settings) -> Tokens:
    """The tokens at the uniforms; `mixed`, a view of the buffer, is used up."""
    if settings.plausibility:
        least = a.float().amax(-1, keepdim=True) + math.log(settings.plausibility)
        mixed.masked_fill_(a < least, -math.inf)
    if settings.temperature == 0:
        tokens = mixed.argmax(-1)
        return tokens.masked_fill(~mixed.gather(-1, tokens[:, None]).squeeze(1).isfinite(), NOT_FINITE)
    if settings.temperature != 1:
        mixed.div_(settings.temperature)
    top = mixed.amax(-1, keepdim=True)
    _truncate(mixed, top, settings)
    mixed.sub_(top).exp_()
    # Behind the vocabulary the buffer is zero.
    blocks = buffer.view(len(buffer), -1, _BLOCK)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    # The first block at which the sum passes the uniform's share of the whole, and how much of it lies in there.
    share, block = _first_beyond(cumulative, uniform * cumulative[:, -1])
    # Where nothing is finite it lies behind the last.
    block = block.clamp(max=blocks.shape[1] - 1)
    rest = share - torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, block[:, None]).squeeze(1)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block].cumsum(-1, dtype=torch.float64)
    tokens = block * _BLOCK + _first_beyond(inside, rest)[1]
    return tokens.masked_fill(~top.squeeze(1).isfinite(), NOT_FINITE)


def _first_beyond(cumulative: Float[Tensor, "rows columns"], target: PerRow) -> tuple[PerRow, Tokens]:
    """The targets, below the last sums whatever rounding did, and the first column whose sum is above each."""
    last = cumulative[:, -1]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    return target, torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)


def _truncate(scaled: Logits, top: Column, settings: Settings) -> None:
    """Top-k, top-p and min-p in place; every token as probable as the least one kept is kept too."""
    width = scaled.shape[-1]
    k = min(settings.top_k, width) if settings.top_k else width
    if k < width and settings.top_p == 1:
        scaled.masked_fill_(scaled < scaled.topk(k).values[:, -1:], -math.inf)
    elif settings.top_p < 1:
        scaled.masked_fill_(scaled < _least_of_nucleus(scaled, top, k, settings.top_p), -math.inf)
    if settings.min_p:
        scaled.masked_fill_(scaled < top + math.log(settings.min_p), -math.inf)


def _least_of_nucleus(scaled: Logits, top: Column, k: int, top_p: float) -> Column:
    """The logit of the token that crosses `top_p` of the mass of the `k` most probable; only a part is sorted."""
    width = scaled.shape[-1]
    total = (scaled - top).exp_().sum(-1, keepdim=True, dtype=torch.float64) if k == width else None
    count = min(k, width, _FIRST_SORTED if k == width else k)
    while True:
        ordered = scaled.topk(count).values
        weight = (ordered - top).double().exp_()
        if total is None:
            total = weight.sum(-1, keepdim=True)
        mass = weight.div_(total).cumsum(-1)
        if count == k or bool((mass[:, -1] >= top_p).all()):
            # The mass before a token decides whether it is kept.
            return ordered.gather(-1, (mass[:, :-1] < top_p).sum(-1, keepdim=True))
        count = min(k, 8 * count)
