"""Logit difference amplification: samples from after + alpha * (after - before), many rows at once."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from datablame.errors import PhaseError
from datablame.models.device import ran_out_of_memory, with_float64
from datablame.surface.sampler.batch import Outputs, fill_and_run
from datablame.surface.sampler.decoder import Decoder, RingDecoder, StockDecoder, refillable
from datablame.surface.sampler.prefill import Prompts
from datablame.surface.sampler.shared_trunk import shared_trunk
from datablame.surface.sampler.tokens import Settings

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

    Raises:
        PhaseError: a single row does not fit in memory.
    """
    if not requests:
        return []
    work = _work(after, before, requests, both=log_probabilities)
    weighed = tuple(alphas) if settings.untruncated else ()
    outputs = Outputs(
        [request.key for request in requests],
        [request.alpha for request in requests],
        settings=settings,
        stop_ids=stop_ids,
        vocabulary_size=vocabulary_size,
        weighed=weighed if log_probabilities else None,
        # Tokens are chosen in float64, which Apple's cards lack; the models may lie on several devices.
        device=with_float64(after.device),
    )
    capacity = min(batch_rows, len(requests))
    while not _ran(work, outputs, settings.max_new_tokens, capacity):
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
    stops = set(stop_ids)
    generations = []
    for ids, (log_p_after, log_p_before, *log_q) in zip(outputs.tokens.tolist(), outputs.sums.tolist(), strict=True):
        end = next((index for index, token in enumerate(ids) if token in stops), None)
        generations.append(
            Generation(
                token_ids=tuple(ids[:end]),
                finish_reason="length" if end is None else "stop",
                log_p_after=log_p_after if log_probabilities else None,
                log_p_before=log_p_before if log_probabilities else None,
                log_q=tuple(log_q) if log_probabilities and settings.untruncated else None,
            )
        )
    return generations


class _Work(NamedTuple):
    """The distinct prompts, each request's, and which trees of modules serve which requests in which order."""

    prompts: list[tuple[int, ...]]
    prompt_of: list[int]
    queues: list[tuple[list[Any], list[int]]]


def _work(after: Any, before: Any, requests: Sequence[Request], *, both: bool) -> _Work:
    """Prompts from the shortest on, a prompt's requests together; alpha 0 apart, where after serves, unless `both`."""
    prompts = sorted(dict.fromkeys(request.prompt for request in requests), key=len)
    number = {prompt: index for index, prompt in enumerate(prompts)}
    prompt_of = [number[request.prompt] for request in requests]
    order = sorted(range(len(requests)), key=lambda index: (prompt_of[index], index))
    plain = [index for index in order if not both and requests[index].alpha == 0]
    amplified = [index for index in order if both or requests[index].alpha != 0]
    queues: list[tuple[list[Any], list[int]]] = [([after], plain)] if plain else []
    if amplified:
        tree = shared_trunk(after, before) if refillable(after) else None
        queues.append(([after, before] if tree is None else [tree], amplified))
    return _Work(prompts, prompt_of, queues)


@torch.inference_mode()
def _ran(work: _Work, outputs: Outputs, steps: int, capacity: int) -> bool:
    """Draw what is not done, at most `capacity` rows at once; False where memory ran out."""
    columns = len(work.prompts[-1]) + steps - 1
    read: dict[int, Prompts] = {}
    try:
        for models, queue in work.queues:
            waiting = [index for index in queue if not outputs.done[index]]
            if not waiting:
                continue
            rows = min(capacity, len(waiting))
            decoders: list[Decoder]
            if all(refillable(model) for model in models):
                for model in models:
                    read.setdefault(id(model), Prompts(model, work.prompts, capacity, capacity * columns))
                prompts = [read[id(model)] for model in models]
                rows = _rows(prompts, work.prompt_of[waiting[0]], columns, rows)
                decoders = [RingDecoder(each, rows, steps) for each in prompts]
            else:
                decoders = [StockDecoder(model, work.prompts, steps) for model in models]
            fill_and_run(decoders, outputs, waiting, work.prompt_of, rows)
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
    """Memory of the card that is free or that torch holds unused; None on a device that is no card.

    On a CPU other processes come and go: there the number of rows is the study's alone.
    """
    if device.type != "cuda":
        return None
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))
