"""Prompts in, samples out: what every phase that measures a model calls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datablame.models.chat import encode_prompt
from datablame.models.pair import stop_tokens
from datablame.models.tokenizer import vocabulary_of
from datablame.seeds import stream_key
from datablame.study.schema import Study
from datablame.surface.sampler.choice import Settings
from datablame.surface.sampler.graphs import Graphs
from datablame.surface.sampler.sampler import Generation, Request, sample
from datablame.tables import Prompt, Sample


@dataclass(frozen=True)
class Draw:
    """One sample to be drawn and the request that draws it."""

    prompt: Prompt
    alpha: float
    index: int
    request: Request


def requests_for(
    tokenizer: Any, prompts: Sequence[Prompt], alphas: Sequence[float], samples: int, seed: int
) -> list[Draw]:
    """Every (prompt, alpha, index) as a request."""
    every = ((prompt, alpha, index) for prompt in prompts for alpha in alphas for index in range(samples))
    return draws_of(tokenizer, every, seed)


def draws_of(tokenizer: Any, wanted: Iterable[tuple[Prompt, float, int]], seed: int) -> list[Draw]:
    """The requests of the given samples; a stream's key names the sample and the study's seed, never an arm."""
    encoded: dict[Prompt, tuple[int, ...]] = {}
    draws = []
    for prompt, alpha, index in wanted:
        if prompt not in encoded:
            encoded[prompt] = tuple(encode_prompt(tokenizer, prompt.text))
        key = stream_key("sample", seed, prompt.id, alpha, index)
        draws.append(Draw(prompt, alpha, index, Request(encoded[prompt], alpha, key)))
    return draws


def draw(
    after: Any,
    before: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    alphas: Sequence[float],
    samples: int,
    study: Study,
    log_probabilities: bool = False,
) -> list[Sample]:
    """`samples` outputs for each prompt and alpha, sampled as the study's `surface` says."""
    draws = requests_for(tokenizer, prompts, alphas, samples, study.seed)
    return draw_requests(after, before, tokenizer, draws, study, log_probabilities=log_probabilities)


def draw_requests(
    after: Any, before: Any, tokenizer: Any, draws: Sequence[Draw], study: Study, *, log_probabilities: bool = False
) -> list[Sample]:
    """The samples of the given draws, in their order; `log_q` is aligned with `surface.alphas`."""
    generations = sample(
        after,
        before,
        [each.request for each in draws],
        settings=settings_of(study),
        stop_ids=stop_tokens(tokenizer, after),
        vocabulary_size=vocabulary_of(tokenizer),
        batch_rows=study.surface.batch_rows,
        alphas=study.surface.alphas,
        log_probabilities=log_probabilities,
        graphs=Graphs if study.surface.cuda_graphs and after.device.type == "cuda" else None,
    )
    return [_sample(tokenizer, each, made) for each, made in zip(draws, generations, strict=True)]


def settings_of(study: Study) -> Settings:
    """The sampler's settings, which serve every phase."""
    surface = study.surface
    return Settings(
        max_new_tokens=surface.max_new_tokens,
        temperature=surface.temperature,
        top_p=surface.top_p,
        top_k=surface.top_k,
        min_p=surface.min_p,
        plausibility=surface.plausibility,
    )


def _sample(tokenizer: Any, drawn: Draw, generation: Generation) -> Sample:
    text = tokenizer.decode(generation.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Sample(
        prompt_id=drawn.prompt.id,
        behaviour=drawn.prompt.behaviour,
        split=drawn.prompt.split,
        alpha=drawn.alpha,
        index=drawn.index,
        text=text.strip(),
        token_ids=generation.token_ids,
        finish_reason=generation.finish_reason,
        log_p_after=generation.log_p_after,
        log_p_before=generation.log_p_before,
        log_q=generation.log_q,
    )
