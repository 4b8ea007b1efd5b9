"""Logit difference amplification: samples from after + alpha * (after - before), many rows at once."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from datablame.errors import PhaseError
from datablame.models.device import ran_out_of_memory, with_float64
from datablame.surface.sampler.batch import Drawn, fill_and_run
from datablame.surface.sampler.branches import forked
from datablame.surface.sampler.capacity import free_bytes_of, row_bytes, rows_that_fit
from datablame.surface.sampler.choice import Settings
from datablame.surface.sampler.decoder import Decoder, RingDecoder, StockDecoder, refillable
from datablame.surface.sampler.graphs import Graphs
from datablame.surface.sampler.prefill import Prompts

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
    graphs: Callable[..., Graphs] | None = None,
) -> list[Generation]:
    """One generation for each request, in the order of the requests.

    Token t of a request is the inverse CDF of softmax((a + alpha (a - b)) / temperature), truncated, at its own t-th
    uniform; a and b are float32 logits over the first `vocabulary_size` rows. `log_q[k]` sums log softmax(a + alphas[k]
    (a - b)), given only where the settings truncate nothing. The before model runs only where an alpha other than 0 or
    log-probabilities need it, and as one with after where that is before plus LoRA.

    At most `batch_rows` requests run at once, fewer where a graphics card has no room; when one finishes the next takes
    its place. A batch that runs out of memory is halved; what was finished stays. `graphs` makes the decode steps of a
    card CUDA graphs (`datablame.surface.sampler.graphs.Graphs`).

    Raises:
        PhaseError: a single row does not fit in memory.
    """
    if not requests:
        return []
    work = _work(after, before, requests, both=log_probabilities)
    drawn = Drawn(
        [request.key for request in requests],
        [request.alpha for request in requests],
        settings=settings,
        stop_ids=stop_ids,
        vocabulary_size=vocabulary_size,
        weighed=(tuple(alphas) if settings.untruncated else ()) if log_probabilities else None,
        # Tokens are chosen in float64, which Apple's cards lack; the models may lie on several devices.
        device=with_float64(after.device),
    )
    capacity = min(batch_rows, len(requests))
    while not _ran(work, drawn, settings.max_new_tokens, capacity, graphs):
        if capacity == 1:
            left = min(len(requests[place].prompt) for place in (~drawn.done).nonzero().squeeze(1).tolist())
            raise PhaseError(
                f"one output after a prompt of {left} tokens does not fit in memory; lower surface.max_new_tokens, or "
                "set the dtype of models.before and models.after to float16"
            )
        torch.cuda.empty_cache()
        drawn.forget_unfinished()
        capacity //= 2
        _logger.warning("memory ran out; outputs are now sampled %d at a time", capacity)
    return _generations(
        drawn.tokens,
        drawn.sums,
        set(stop_ids),
        log_probabilities=log_probabilities,
        log_q=settings.untruncated,
    )


class _Work(NamedTuple):
    """The distinct prompts, each request's, and which trees of modules serve which requests in which order."""

    prompts: list[tuple[int, ...]]
    numbers: list[int]
    queues: list[tuple[list[Any], list[int]]]


def _work(after: Any, before: Any, requests: Sequence[Request], *, both: bool) -> _Work:
    """Prompts from the shortest on, a prompt's requests together; alpha 0 apart, where after serves, unless `both`."""
    prompts = sorted(dict.fromkeys(request.prompt for request in requests), key=len)
    number = {prompt: place for place, prompt in enumerate(prompts)}
    numbers = [number[request.prompt] for request in requests]
    order = sorted(range(len(requests)), key=lambda place: (numbers[place], place))
    plain = [place for place in order if not both and requests[place].alpha == 0]
    amplified = [place for place in order if both or requests[place].alpha != 0]
    queues: list[tuple[list[Any], list[int]]] = [([after], plain)] if plain else []
    if amplified:
        tree = forked(after, before)
        queues.append(([after, before] if tree is None else [tree], amplified))
    return _Work(prompts, numbers, queues)


@torch.inference_mode()
def _ran(work: _Work, drawn: Drawn, steps: int, capacity: int, graphs: Callable[..., Graphs] | None) -> bool:
    """Draw what is not done, at most `capacity` rows at once; False where memory ran out."""
    columns = len(work.prompts[-1]) + steps - 1
    read: dict[int, Prompts] = {}
    try:
        for models, queue in work.queues:
            waiting = [place for place in queue if not drawn.done[place]]
            if not waiting:
                continue
            rows = min(capacity, len(waiting))
            decoders: list[Decoder]
            if all(refillable(model) for model in models):
                for model in models:
                    read.setdefault(id(model), Prompts(model, work.prompts, capacity, capacity * columns))
                prompts = [read[id(model)] for model in models]
                rows = _rows(prompts, work.numbers[waiting[0]], columns, rows)
                decoders = [RingDecoder(each, rows, steps, graphs) for each in prompts]
            else:
                decoders = [StockDecoder(model, work.prompts, steps) for model in models]
            fill_and_run(decoders, drawn, waiting, work.numbers, rows)
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
    chunks = [each.groups([first])[0][0] for each in prompts]
    rows = rows_that_fit(sum(row_bytes(chunk, columns) for chunk in chunks), free, most)
    if rows < most:
        _logger.info("the card has room for %d outputs at a time, not %d", rows, most)
    return rows


def _generations(
    tokens: Int[Tensor, "rows steps"],
    sums: Tensor,
    stop_ids: set[int],
    *,
    log_probabilities: bool,
    log_q: bool,
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
                log_q=tuple(amplified) if log_probabilities and log_q else None,
            )
        )
    return generations
