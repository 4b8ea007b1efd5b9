"""Logit difference amplification: samples from after + alpha * (after - before), many rows at once."""

import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from datablame.errors import PhaseError
from datablame.models.device import ran_out_of_memory, with_float64
from datablame.seeds import uniforms
from datablame.surface.cache import RoomyLayer, closing_up, expanded, keep_rows
from datablame.surface.choice import Settings, choose

__all__ = ["Generation", "Request", "Settings", "sample"]

_logger = logging.getLogger(__name__)


class Request(NamedTuple):
    """One output to draw; `key` is the stream of its uniforms, so that no other request has a say in it."""

    prompt: tuple[int, ...]
    alpha: float
    key: int


class Generation(NamedTuple):
    """An output without its stop token; the log-probabilities are sums over its tokens and the stop token, in nats."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    log_p_after: float | None
    log_p_before: float | None
    log_q: tuple[float, ...] | None


def sample(
    after: Any,
    before: Any,
    requests: Sequence[Request],
    *,
    settings: Settings,
    stop_ids: Sequence[int],
    vocabulary_size: int,
    batch_rows: int,
    alphas: Sequence[float] = (),
    log_probabilities: bool = False,
) -> list[Generation]:
    """One generation for each request, in the order of the requests.

    Token t of a request is the inverse CDF of softmax((a + alpha (a - b)) / temperature), truncated, at its own t-th
    uniform; a and b are float32 logits over the first `vocabulary_size` rows. `log_q[k]` sums log softmax(a + alphas[k]
    (a - b)), given only where the settings truncate nothing. The before model runs only where an alpha other than 0 or
    log-probabilities need it. A batch that does not fit in memory is halved, and so are those after it.

    Raises:
        PhaseError: a single row does not fit in memory.
    """
    drawn: dict[int, Generation] = {}
    waiting = list(_batches(requests, batch_rows, apart=not log_probabilities))[::-1]
    while waiting:
        places = waiting.pop()
        rows = [requests[place] for place in places]
        needed = log_probabilities or any(row.alpha != 0 for row in rows)
        try:
            generations = _sample_batch(
                [after, before] if needed else [after],
                rows,
                settings=settings,
                stop_ids=stop_ids,
                vocabulary_size=vocabulary_size,
                alphas=tuple(alphas) if settings.untruncated else None,
                log_probabilities=log_probabilities,
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
        else:
            drawn.update(zip(places, generations, strict=True))
            continue
        waiting = _halved([places, *waiting[::-1]], requests)[::-1]
    return [drawn[place] for place in range(len(requests))]


def _halved(batches: Sequence[list[int]], requests: Sequence[Request]) -> list[list[int]]:
    """The batches in their order, cut so that none has more than half of the first one's rows."""
    first = batches[0]
    if len(first) == 1:
        raise PhaseError(
            f"one output after a prompt of {len(requests[first[0]].prompt)} tokens does not fit in memory; lower "
            "surface.max_new_tokens, or set the dtype of models.before and models.after to float16"
        )
    torch.cuda.empty_cache()
    rows = len(first) // 2
    _logger.warning("memory ran out; outputs are now sampled %d at a time", rows)
    return [batch[start : start + rows] for batch in batches for start in range(0, len(batch), rows)]


def _batches(requests: Sequence[Request], batch_rows: int, *, apart: bool) -> Iterator[list[int]]:
    """Places of the requests, a prompt's together and prompts of one length together; alpha 0 `apart`, if asked."""
    first = {prompt: place for place, prompt in reversed(list(enumerate(request.prompt for request in requests)))}
    groups: dict[bool, list[int]] = {}
    for place in sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), first[requests[i].prompt], i)):
        groups.setdefault(apart and requests[place].alpha == 0, []).append(place)
    for group in groups.values():
        for start in range(0, len(group), batch_rows):
            yield group[start : start + batch_rows]


@torch.inference_mode()
def _sample_batch(
    models: Sequence[Any],
    rows: Sequence[Request],
    *,
    settings: Settings,
    stop_ids: Sequence[int],
    vocabulary_size: int,
    alphas: tuple[float, ...] | None,
    log_probabilities: bool,
) -> list[Generation]:
    # Tokens are chosen in float64, which Apple's cards lack; the models may lie on several devices.
    device = with_float64(models[0].device)
    steps = settings.max_new_tokens
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    number = {prompt: place for place, prompt in enumerate(prompts)}
    expansion = torch.tensor([number[row.prompt] for row in rows], device=device)
    decoders = [_Decoder(model, prompts, expansion, steps) for model in models]

    alpha = torch.tensor([[row.alpha] for row in rows], dtype=torch.float32, device=device)
    uniform = _uniforms(rows, settings).to(device)
    is_stop = torch.zeros(vocabulary_size, dtype=torch.bool)
    is_stop[[token for token in stop_ids if token < vocabulary_size]] = True
    is_stop = is_stop.to(device)
    tokens = torch.full((len(rows), steps), -1, device=device)
    sums = torch.zeros(len(rows), 2 + len(alphas or ()), dtype=torch.float64, device=device)
    live = torch.arange(len(rows), device=device)
    logits = [decoder.first for decoder in decoders]

    for step in range(steps):
        a, *rest = (each[:, :vocabulary_size].to(device).float() for each in logits)
        difference = a - rest[0] if rest else None
        mixed = a if difference is None else torch.addcmul(a, alpha, difference)
        chosen = choose(mixed, a, uniform[:, step], settings)
        tokens[live, step] = chosen
        if log_probabilities and difference is not None:
            sums[live] += _log_probabilities(a, rest[0], difference, chosen, alphas or ())
        alive = ~is_stop[chosen]
        if step == steps - 1:
            break
        kept, holes = closing_up(alive)
        if len(kept) == 0:
            break
        if len(kept) < len(live):
            live, chosen, alpha, uniform = live[kept], chosen[kept], alpha[kept], uniform[kept]
            for decoder in decoders:
                decoder.keep(kept, holes)
        logits = [decoder.step(chosen) for decoder in decoders]

    return _generations(tokens, sums, set(stop_ids), alphas, log_probabilities=log_probabilities)


class _Decoder:
    """One model over a batch of rows: the prompts read once, then a token at a time for every row still going."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], expansion: Tensor, steps: int) -> None:
        device = model.device
        expansion = expansion.to(device)
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        ragged = min(lengths) < longest
        # What stands in a masked place has no influence; 0 is a token of every vocabulary.
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=device) if ragged else None
        positions = (
            (mask.cumsum(1) - 1).clamp(min=0) if mask is not None else torch.arange(longest, device=device)[None]
        )
        cache = DynamicCache(config=model.config)
        # transformers 5.24 renamed the argument; 5.40 drops the old name.
        old = "past_key_values"
        self._name = old if old in inspect.signature(model.forward).parameters else "cache"
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._name: cache},
        )
        room = longest + steps - 1
        self._model, self._device = model, device
        self._cache = expanded(cache, expansion, room)
        self.first: Float[Tensor, "rows embedding"] = output.logits[:, -1][expansion]
        self._tokens = longest
        self._position = positions[:, -1:][expansion] if ragged else positions[:, -1:]
        self._ragged = ragged
        # A mask of four dimensions passes through transformers as it is, where a flat one is rebuilt at every step.
        self._ready_made = model.config._attn_implementation == "sdpa" and all(
            isinstance(layer, RoomyLayer) for layer in self._cache.layers
        )
        self._mask: Tensor | None = None
        if mask is not None:
            full = torch.nn.functional.pad(mask[expansion], (0, steps), value=1)
            additive = torch.zeros(full.shape, dtype=model.dtype, device=device).masked_fill(full == 0, -math.inf)
            self._mask = additive[:, None, None, :] if self._ready_made else full

    def step(self, chosen: Int[Tensor, " rows"]) -> Float[Tensor, "rows embedding"]:
        """The logits after each row's chosen token."""
        chosen = chosen.to(self._device)
        self._tokens += 1
        self._position = self._position + 1
        logits: Tensor = self._model(
            input_ids=chosen[:, None],
            attention_mask=None if self._mask is None else self._mask[..., : self._tokens],
            position_ids=self._position,
            use_cache=True,
            logits_to_keep=1,
            **{self._name: self._cache},
        ).logits
        return logits[:, -1]

    def keep(self, kept: Int[Tensor, " kept"], holes: Int[Tensor, " holes"]) -> None:
        """Drop the rows that finished."""
        kept, holes = kept.to(self._device), holes.to(self._device)
        keep_rows(self._cache, kept, holes)
        if self._ragged:
            self._position = self._position[kept]
        if self._mask is not None:
            self._mask = self._mask[kept]


def _log_probabilities(
    a: Float[Tensor, "rows vocabulary"],
    b: Float[Tensor, "rows vocabulary"],
    difference: Float[Tensor, "rows vocabulary"],
    chosen: Int[Tensor, " rows"],
    alphas: Sequence[float],
) -> Float[Tensor, "rows terms"]:
    """The chosen tokens' log p_after, log p_before and every log q_k."""
    place = chosen[:, None]
    after, before = (each.log_softmax(-1).gather(-1, place) for each in (a, b))
    amplified = [
        after if alpha == 0 else torch.add(a, difference, alpha=alpha).log_softmax(-1).gather(-1, place)
        for alpha in alphas
    ]
    return torch.cat([after, before, *amplified], -1).double()


def _uniforms(rows: Sequence[Request], settings: Settings) -> Float[Tensor, "rows steps"]:
    steps = settings.max_new_tokens
    if settings.temperature == 0:
        return torch.zeros(len(rows), steps, dtype=torch.float64)
    return torch.stack([torch.from_numpy(uniforms(row.key, steps)) for row in rows])


def _generations(
    tokens: Int[Tensor, "rows steps"],
    sums: Float[Tensor, "rows terms"],
    stop_ids: set[int],
    alphas: tuple[float, ...] | None,
    *,
    log_probabilities: bool,
) -> list[Generation]:
    generations = []
    for ids, (after, before, *amplified) in zip(tokens.tolist(), sums.tolist(), strict=True):
        end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
        generations.append(
            Generation(
                token_ids=tuple(ids[:end]),
                finish_reason="length" if end is None else "stop",
                log_p_after=after if log_probabilities else None,
                log_p_before=before if log_probabilities else None,
                log_q=tuple(amplified) if log_probabilities and alphas is not None else None,
            )
        )
    return generations
