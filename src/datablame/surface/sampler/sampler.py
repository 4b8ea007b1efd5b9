"""Logit difference amplification: samples from after + alpha * (after - before), in a batch that stays full."""

import bisect
import functools
import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datablame.errors import PhaseError
from datablame.models.device import ran_out_of_memory, with_float64
from datablame.seeds import uniforms
from datablame.surface.sampler.decoder import (
    Decoder,
    Prompts,
    RingDecoder,
    compaction,
    decoder_without_refill,
    refillable,
)
from datablame.surface.sampler.shared_trunk import shared_trunk
from datablame.surface.sampler.tokens import NOT_FINITE, Settings, sample_token, token_log_probabilities

_logger = logging.getLogger(__name__)
_MASKED = -30_000.0
"""The logit, of both models, of a token that is not drawn: no infinity, whose difference to itself is no number."""
_LEAST = torch.finfo(torch.float16).min
_SHARE = 0.8
"""Of a card's free memory; the rest is for a step's intermediate results and lost between blocks."""


class NotFinite(PhaseError):
    """A model's logits are infinite or no numbers; says of which request, and of which model where it is one's."""

    def __init__(self, request: int, model: Literal["after", "before"] | None) -> None:
        super().__init__(f"request {request}: the logits of {model or 'the mixture'} are not finite")
        self.request, self.model = request, model


class Request(NamedTuple):
    """One output to draw; `key` is the stream of its uniforms, so that no other request has a say in it."""

    prompt: tuple[int, ...]
    alpha: float
    key: int


class Generation(NamedTuple):
    """An output without its stop token; the log-probabilities are sums over its tokens and the stop token, in nats."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    stop_id: int | None
    log_p_after: float | None
    log_p_before: float | None
    log_q: tuple[float, ...] | None
    token_log_p: tuple[tuple[float, float, float], ...] | None = None
    """Of each token drawn, the stop token too: log p_after, log p_before and log q at the request's own alpha.

    In float16, so none is below -65504.
    """


class Outputs:
    """Each request's prompt, output so far, its log-probabilities and their sums, and whether it is done."""

    def __init__(
        self,
        requests: Sequence[Request],
        settings: Settings,
        stop_ids: Sequence[int],
        vocabulary_size: int,
        masked_ids: Sequence[int],
        weighed: tuple[float, ...] | None,
        per_token: bool,
        device: torch.device,
    ) -> None:
        steps, n = settings.max_new_tokens, len(requests)
        self.prompts = sorted(dict.fromkeys(request.prompt for request in requests), key=len)
        number = {prompt: index for index, prompt in enumerate(self.prompts)}
        self.prompt_of = [number[request.prompt] for request in requests]
        self._settings, self._vocabulary_size, self._weighed = settings, vocabulary_size, weighed
        self._uniform = torch.stack([torch.from_numpy(uniforms(each.key, steps)) for each in requests]).to(device)
        self._alpha = torch.tensor([request.alpha for request in requests], dtype=torch.float32, device=device)
        stops = torch.tensor(stop_ids, dtype=torch.long)
        self._is_stop = torch.isin(torch.arange(vocabulary_size), stops).to(device)
        masked = torch.isin(torch.arange(vocabulary_size), torch.tensor(masked_ids, dtype=torch.long))
        self._masked = masked.to(device) if masked_ids else None
        self._count = torch.zeros(n, dtype=torch.long, device=device)
        self.tokens = torch.full((n, steps), -1, device=device)
        self.sums = torch.zeros(n, 2 + len(weighed or ()), dtype=torch.float64, device=device)
        self.token_log_p = torch.zeros(n, steps if per_token else 0, 3, dtype=torch.float16, device=device)
        # Where log q at a request's own alpha stands among the terms: the last, where no sum is of that alpha.
        alphas, last = weighed or (), self.sums.shape[1]
        own = [2 + alphas.index(r.alpha) if r.alpha in alphas else last for r in requests] if per_token else []
        self._own, self._own_last = torch.tensor(own, device=device), last in own
        self.done = torch.zeros(n, dtype=torch.bool, device=device)

    def forget_unfinished(self) -> None:
        """Begin anew with what is not done."""
        begun = ~self.done
        self.tokens[begun], self.sums[begun], self._count[begun] = -1, 0, 0

    def extend(
        self, requests: Int[Tensor, " rows"], logits: Sequence[Float[Tensor, "rows models _"]]
    ) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The next token of each request, and which of them go on; the logits are after's and before's, if needed."""
        of_models = (part for models in logits for part in models.to(self._alpha.device).unbind(1))
        within = (part[:, : self._vocabulary_size] for part in of_models)
        a, *rest = within if self._masked is None else (part.masked_fill(self._masked, _MASKED) for part in within)
        b = rest[0] if rest else None
        count, alpha = self._count[requests], self._alpha[requests]
        tokens = sample_token(a, b, alpha, self._uniform[requests, count], self._settings)
        if self._weighed is not None and b is not None:
            terms = token_log_probabilities(a, b, tokens, self._weighed, alpha if self._own_last else None)
            self.sums[requests] += terms[:, : self.sums.shape[1]]
            if len(self._own):
                kept = torch.cat([terms[:, :2], terms.gather(1, self._own[requests, None])], 1)
                self.token_log_p[requests, count] = kept.clamp(min=_LEAST).half()
        self.tokens[requests, count] = tokens
        self._count[requests] = count + 1
        on = ~self._is_stop[tokens] & (tokens != NOT_FINITE) & (count + 1 < self.tokens.shape[1])
        self.done[requests] = ~on
        return tokens, on


def sample(
    after: Any,
    before: Any,
    requests: Sequence[Request],
    *,
    settings: Settings,
    stop_ids: Sequence[int],
    vocabulary_size: int,
    masked_ids: Sequence[int] = (),
    batch_rows: int,
    alphas: Sequence[float] = (),
    log_probabilities: bool = False,
    per_token: bool = False,
) -> list[Generation]:
    """One generation for each request, in the order of the requests; PhaseError where one does not fit in memory.

    Token t of a request is the inverse CDF of softmax((a + alpha (a - b)) / temperature), truncated, at its own t-th
    uniform; a and b are float32 logits over the first `vocabulary_size` rows, of which `masked_ids` are never drawn.
    `log_q[k]` sums log softmax(a + alphas[k] (a - b)), given only where the settings truncate nothing. With `per_token`
    log-probabilities of every token are given too, in all settings those of the softmax without temperature and
    truncation. The before model runs only where an alpha other than 0 or log-probabilities need it, and as one with
    after where that is before plus LoRA. At most `batch_rows` requests run at once, fewer where a card has no room; a
    batch that runs out of memory is halved, what was finished stays. Raises `NotFinite` where there is no distribution
    to draw from.
    """
    if not requests:
        return []
    kept = log_probabilities or per_token
    weighed = (tuple(alphas) if log_probabilities and settings.untruncated else ()) if kept else None
    # Tokens are chosen in float64, which Apple's cards lack; the models may lie on several devices.
    device = with_float64(after.device)
    outputs = Outputs(requests, settings, stop_ids, vocabulary_size, masked_ids, weighed, per_token, device)
    # From the shortest prompt on, a prompt's requests together; where alpha is 0 after alone can serve.
    order = sorted(range(len(requests)), key=outputs.prompt_of.__getitem__)
    amplified = [index for index in order if kept or requests[index].alpha != 0]
    plain = [index for index in order if not kept and requests[index].alpha == 0]
    tree = shared_trunk(after, before) if amplified and refillable(after) else None
    queues = [([after], plain), ([after, before] if tree is None else [tree], amplified)]
    capacity = min(batch_rows, len(requests))
    while not _ran(queues, outputs, capacity):
        if capacity == 1:
            shortest = min(len(requests[index].prompt) for index in (~outputs.done).nonzero().squeeze(1).tolist())
            raise PhaseError(
                f"one output after a prompt of {shortest} tokens does not fit in memory; lower surface.max_new_tokens, "
                "or set the dtype of models.before and models.after to float16"
            )
        torch.cuda.empty_cache()
        outputs.forget_unfinished()
        capacity //= 2
        _logger.warning("memory ran out; outputs are now sampled %d at a time", capacity)
    if broken := (outputs.tokens == NOT_FINITE).any(1).nonzero().flatten().tolist():
        ids = [token for token in outputs.tokens[broken[0]].tolist() if token >= 0]
        raise NotFinite(broken[0], _not_finite(after, before, [*requests[broken[0]].prompt, *ids], vocabulary_size))
    stops, generations = set(stop_ids), list[Generation]()
    columns = (each.tolist() for each in (outputs.tokens, outputs.sums, outputs.token_log_p))
    for ids, (after_sum, before_sum, *sums), triples in zip(*columns, strict=True):
        end = next((index for index, token in enumerate(ids) if token in stops), None)
        log_q = tuple(sums) if settings.untruncated else None
        log_p: tuple[Any, Any, Any] = (after_sum, before_sum, log_q) if log_probabilities else (None, None, None)
        ended: tuple[Any, Any] = ("length", None) if end is None else ("stop", ids[end])
        drawn = triples[: None if end is None else end + 1]
        token_log_p: Any = tuple(map(tuple, drawn)) if per_token else None
        generations.append(Generation(tuple(ids[:end]), *ended, *log_p, token_log_p=token_log_p))
    return generations


@torch.inference_mode()
def _not_finite(after: Any, before: Any, ids: Sequence[int], vocabulary_size: int) -> Literal["after", "before"] | None:
    """Which model's logits after these tokens are not finite."""
    roles: tuple[tuple[Literal["after", "before"], Any], ...] = (("after", after), ("before", before))
    for role, model in roles:
        given = torch.tensor([list(ids)], device=model.device)
        logits = model(input_ids=given, use_cache=False).logits[0, -1, :vocabulary_size]
        if not bool(logits.isfinite().all()):
            return role
    return None


@torch.inference_mode()
def _ran(queues: Sequence[tuple[list[Any], list[int]]], outputs: Outputs, capacity: int) -> bool:
    """Draw what is not done of each queue with its models, at most `capacity` at once; False where memory ran out."""
    prompts, steps = outputs.prompts, outputs.tokens.shape[1]
    columns = len(prompts[-1]) + steps - 1
    read = functools.cache(lambda model: Prompts(model, prompts, capacity, capacity * columns))
    try:
        for models, queue in queues:
            waiting = [index for index in queue if not outputs.done[index]]
            rows = min(capacity, len(waiting))
            decoders: list[Decoder]
            if not waiting:
                continue
            if all(map(refillable, models)):
                of_models = [read(model) for model in models]
                rows = room(of_models, outputs.prompt_of[waiting[0]], columns, rows)
                decoders = [RingDecoder(each, rows, steps) for each in of_models]
            else:
                decoders = [decoder_without_refill(model, prompts, steps) for model in models]
            fill_and_run(decoders, outputs, waiting, rows)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True


def room(prompts: Sequence[Prompts], first: int, columns: int, most: int) -> int:
    """`most` rows, or what a graphics card that all models are on has room for; a CPU's rows are the study's alone."""
    device = prompts[0].model.device
    if device.type != "cuda":
        return most
    # What is free, and what torch holds unused.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    rows = rows_that_fit(sum(each.chunks_of([first])[0][0].row_bytes(columns) for each in prompts), free, most)
    if rows < most:
        _logger.info("the card has room for %d outputs at a time, not %d", rows, most)
    return rows


def rows_that_fit(row_bytes: int, free_bytes: int, most: int) -> int:
    """At most `most` rows; fewer are a power of two, so that a little more or less free memory changes nothing."""
    fit = int(_SHARE * free_bytes) // row_bytes
    return most if fit >= most else 1 << max(0, fit.bit_length() - 1)


@torch.inference_mode()
def fill_and_run(decoders: Sequence[Decoder], outputs: Outputs, queue: Sequence[int], capacity: int) -> None:
    """Draw the queue's requests, at most `capacity` at once, by nothing but queue and draws."""
    device = outputs.done.device
    # Into other caches than rings no prompt can join rows that are going on.
    refills = all(isinstance(decoder, RingDecoder) for decoder in decoders)
    pads = all(isinstance(decoder, RingDecoder) or decoder.pads for decoder in decoders)
    none = torch.empty(0, dtype=torch.long, device=device)
    live, tokens, on, taken = none, none, none.bool(), 0
    while True:
        free_rows = capacity - int(on.sum())
        if free_rows == capacity and len(on):
            live, tokens, on = none, none, none.bool()
            for decoder in decoders:
                decoder.drop_rows(none, none)
        while free_rows and taken < len(queue) and (refills or free_rows == capacity):
            group = list(queue[taken : taken + free_rows])
            numbers = [outputs.prompt_of[request] for request in group]
            if not pads:
                lengths = [len(outputs.prompts[number]) for number in numbers]
                numbers = numbers[: bisect.bisect_right(lengths, lengths[0])]
            group = group[: len(numbers)]
            taken += len(group)
            requests = torch.tensor(group, device=device)
            first, going = outputs.extend(requests, [decoder.first(numbers) for decoder in decoders])
            survivors = going.nonzero().squeeze(1)
            if len(survivors) == 0:
                continue
            # Rows that finished, then rows behind the last.
            free = (~on).nonzero().squeeze(1)[: len(survivors)]
            more = len(survivors) - len(free)
            rows = torch.cat([free, torch.arange(len(on), len(on) + more, device=device)])
            live, tokens, on = (torch.cat([column, column.new_zeros(more)]) for column in (live, tokens, on))
            live[rows], tokens[rows], on[rows] = requests[survivors], first[survivors], True
            for decoder in decoders:
                decoder.add_rows(numbers, survivors, rows, len(live))
            free_rows -= len(survivors)
        if len(on) == 0:
            return
        sources, holes = compaction(on)
        if len(sources) < len(on):
            live, tokens = live[sources], tokens[sources]
            for decoder in decoders:
                decoder.drop_rows(sources, holes)
        tokens, on = outputs.extend(live, [decoder.step(tokens) for decoder in decoders])
