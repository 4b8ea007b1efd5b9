"""Logit difference amplification: samples from after + alpha * (after - before), many rows at once.

A batch stays full: rows that finish make room for the next ones in the queue, whatever their prompts.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datablame.errors import PhaseError
from datablame.models.device import ran_out_of_memory, with_float64
from datablame.seeds import uniforms
from datablame.surface.sampler.decoder import Decoder, RingDecoder, StockDecoder, compaction, refillable
from datablame.surface.sampler.prefill import Prompts
from datablame.surface.sampler.shared_trunk import shared_trunk
from datablame.surface.sampler.tokens import Settings, sample_token, token_log_probabilities

_logger = logging.getLogger(__name__)
_SHARE = 0.8
"""Of a card's free memory; the rest is for a step's intermediate results and lost between blocks."""


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


class Outputs:
    """Every request's output so far: its tokens, its sums of log-probabilities, and whether it is done."""

    def __init__(
        self,
        requests: Sequence[Request],
        settings: Settings,
        stop_ids: Sequence[int],
        vocabulary_size: int,
        weighed: tuple[float, ...] | None,
        device: torch.device,
    ) -> None:
        steps, n = settings.max_new_tokens, len(requests)
        self._settings, self._vocabulary_size, self._weighed = settings, vocabulary_size, weighed
        greedy = settings.temperature == 0
        zeros = torch.zeros(steps, dtype=torch.float64)
        rows = [zeros if greedy else torch.from_numpy(uniforms(request.key, steps)) for request in requests]
        self._uniform = torch.stack(rows).to(device)
        self._alpha = torch.tensor([request.alpha for request in requests], dtype=torch.float32, device=device)
        is_stop = torch.zeros(vocabulary_size, dtype=torch.bool)
        is_stop[[token for token in stop_ids if token < vocabulary_size]] = True
        self._is_stop = is_stop.to(device)
        self._count = torch.zeros(n, dtype=torch.long, device=device)
        self.tokens = torch.full((n, steps), -1, device=device)
        self.sums = torch.zeros(n, 2 + len(weighed or ()), dtype=torch.float64, device=device)
        self.done = torch.zeros(n, dtype=torch.bool, device=device)

    def forget_unfinished(self) -> None:
        """Begin anew with what is not done."""
        self.tokens[~self.done] = -1
        self.sums[~self.done] = 0
        self._count[~self.done] = 0

    def extend(
        self, requests: Int[Tensor, " rows"], logits: Sequence[Float[Tensor, "rows models embedding"]]
    ) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The next token of each request, and which of them go on; the logits are after's and before's, if needed."""
        parts = [part for models in logits for part in models.to(self._alpha.device).unbind(1)]
        a, *rest = (part[:, : self._vocabulary_size] for part in parts)
        b = rest[0] if rest else None
        count = self._count[requests]
        tokens = sample_token(a, b, self._alpha[requests], self._uniform[requests, count], self._settings)
        if self._weighed is not None and b is not None:
            self.sums[requests] += token_log_probabilities(a, b, tokens, self._weighed)
        self.tokens[requests, count] = tokens
        self._count[requests] = count + 1
        on = ~self._is_stop[tokens] & (count + 1 < self.tokens.shape[1])
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
    batch_rows: int,
    alphas: Sequence[float] = (),
    log_probabilities: bool = False,
) -> list[Generation]:
    """One generation for each request, in the order of the requests.

    Token t of a request is the inverse CDF of softmax((a + alpha (a - b)) / temperature), truncated, at its own t-th
    uniform; a and b are float32 logits over the first `vocabulary_size` rows. `log_q[k]` sums log softmax(a + alphas[k]
    (a - b)), given only where the settings truncate nothing. The before model runs only where an alpha other than 0 or
    log-probabilities need it, and as one with after where that is before plus LoRA.

    At most `batch_rows` requests run at once, fewer where a graphics card has no room; when one finishes the next takes
    its place. A batch that runs out of memory is halved; what was finished stays.
    Raises PhaseError where a single row does not fit in memory.
    """
    if not requests:
        return []
    prompts = sorted(dict.fromkeys(request.prompt for request in requests), key=len)
    number = {prompt: index for index, prompt in enumerate(prompts)}
    prompt_of = [number[request.prompt] for request in requests]
    queues = _queues(after, before, requests, prompt_of, both=log_probabilities)
    weighed = (tuple(alphas) if settings.untruncated else ()) if log_probabilities else None
    # Tokens are chosen in float64, which Apple's cards lack; the models may lie on several devices.
    outputs = Outputs(requests, settings, stop_ids, vocabulary_size, weighed, with_float64(after.device))
    capacity = min(batch_rows, len(requests))
    while not _ran(queues, prompts, prompt_of, outputs, capacity):
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
    stops, generations = set(stop_ids), list[Generation]()
    for ids, (after_sum, before_sum, *sums) in zip(outputs.tokens.tolist(), outputs.sums.tolist(), strict=True):
        end = next((index for index, token in enumerate(ids) if token in stops), None)
        log_q = tuple(sums) if settings.untruncated else None
        log_p = (after_sum, before_sum, log_q) if log_probabilities else (None, None, None)
        generations.append(Generation(tuple(ids[:end]), "length" if end is None else "stop", *log_p))
    return generations


_Queue = tuple[list[Any], list[int]]
"""Trees of modules and the requests that they serve, in this order."""


def _queues(
    after: Any, before: Any, requests: Sequence[Request], prompt_of: Sequence[int], *, both: bool
) -> list[_Queue]:
    """Prompts from the shortest on, a prompt's requests together; alpha 0 apart, where after serves, unless `both`."""
    order = sorted(range(len(requests)), key=prompt_of.__getitem__)
    plain = [index for index in order if not both and requests[index].alpha == 0]
    amplified = [index for index in order if both or requests[index].alpha != 0]
    queues: list[_Queue] = [([after], plain)] if plain else []
    if amplified:
        tree = shared_trunk(after, before) if refillable(after) else None
        queues.append(([after, before] if tree is None else [tree], amplified))
    return queues


@torch.inference_mode()
def _ran(
    queues: Sequence[_Queue],
    prompts: Sequence[tuple[int, ...]],
    prompt_of: Sequence[int],
    outputs: Outputs,
    capacity: int,
) -> bool:
    """Draw what is not done, at most `capacity` rows at once; False where memory ran out."""
    steps = outputs.tokens.shape[1]
    columns = len(prompts[-1]) + steps - 1
    read: dict[int, Prompts] = {}
    try:
        for models, queue in queues:
            waiting = [index for index in queue if not outputs.done[index]]
            if not waiting:
                continue
            rows = min(capacity, len(waiting))
            decoders: list[Decoder]
            if all(refillable(model) for model in models):
                for model in models:
                    read.setdefault(id(model), Prompts(model, prompts, capacity, capacity * columns))
                of_models = [read[id(model)] for model in models]
                rows = _rows(of_models, prompt_of[waiting[0]], columns, rows)
                decoders = [RingDecoder(each, rows, steps) for each in of_models]
            else:
                decoders = [StockDecoder(model, prompts, steps) for model in models]
            fill_and_run(decoders, outputs, waiting, prompt_of, rows)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True


def _rows(prompts: Sequence[Prompts], first: int, columns: int, most: int) -> int:
    """`most`, or what a graphics card that all models are on has room for."""
    free = free_bytes_of(prompts[0].model.device)
    if free is None:
        return most
    row_bytes = sum(each.chunks_of([first])[0][0].row_bytes(columns) for each in prompts)
    rows = rows_that_fit(row_bytes, free, most)
    if rows < most:
        _logger.info("the card has room for %d outputs at a time, not %d", rows, most)
    return rows


def rows_that_fit(row_bytes: int, free_bytes: int, most: int) -> int:
    """At most `most` rows; fewer are a power of two, so that a little more or less free memory changes nothing."""
    fit = int(_SHARE * free_bytes) // row_bytes
    return most if fit >= most else 1 << max(0, fit.bit_length() - 1)


def free_bytes_of(device: torch.device) -> int | None:
    """Memory that is free or that torch holds unused; None off a card: a CPU's rows are the study's alone."""
    if device.type != "cuda":
        return None
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))


@torch.inference_mode()
def fill_and_run(
    decoders: Sequence[Decoder], outputs: Outputs, queue: Sequence[int], prompts: Sequence[int], capacity: int
) -> None:
    """Draw the queue's requests, at most `capacity` at once, by nothing but queue and draws; r follows prompts[r]."""
    device = outputs.done.device
    # Into other caches than rings no prompt can join rows that are going on.
    refills = all(isinstance(decoder, RingDecoder) for decoder in decoders)
    none = torch.empty(0, dtype=torch.long, device=device)
    live, tokens, on = none, none, none.bool()
    taken = 0
    while True:
        room = capacity - int(on.sum())
        if room == capacity and len(on):
            live, tokens, on = none, none, none.bool()
            for decoder in decoders:
                decoder.drop_rows(none, none)
        while room and taken < len(queue) and (refills or room == capacity):
            group = list(queue[taken : taken + room])
            taken += len(group)
            numbers = [prompts[request] for request in group]
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
            room -= len(survivors)
        if len(on) == 0:
            return
        sources, holes = compaction(on)
        if len(sources) < len(on):
            live, tokens = live[sources], tokens[sources]
            for decoder in decoders:
                decoder.drop_rows(sources, holes)
        tokens, on = outputs.extend(live, [decoder.step(tokens) for decoder in decoders])
