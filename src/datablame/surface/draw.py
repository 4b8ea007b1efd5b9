"""Samples named, and drawn from a model: what every phase that measures a model calls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from datablame.config.schema import Study
from datablame.seeds import stream_key
from datablame.tables import Prompt, Sample


@dataclass(frozen=True)
class SampleSpec:
    """One sample to be drawn."""

    prompt: Prompt
    alpha: float
    index: int

    @property
    def key(self) -> tuple[str, float, int]:
        """Names it among the samples of one model."""
        return self.prompt.id, self.alpha, self.index


def spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """`n` prompts taken in turn from each behaviour, in the order given."""
    by_behaviour: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_behaviour.setdefault(prompt.behaviour, []).append(prompt)
    longest = max(map(len, by_behaviour.values()), default=0)
    turns = (group[turn] for turn in range(longest) for group in by_behaviour.values() if turn < len(group))
    return [prompt for prompt, _ in zip(turns, range(n), strict=False)]


def sample_specs(prompts: Iterable[Prompt], alphas: Sequence[float], indices: Iterable[int]) -> list[SampleSpec]:
    """Every (prompt, alpha, index), in this order."""
    every = tuple(indices)
    return [SampleSpec(prompt, alpha, index) for prompt in prompts for alpha in alphas for index in every]


def draw(
    after: Any, before: Any, tokenizer: Any, specs: Sequence[SampleSpec], study: Study, log_probabilities: bool = False
) -> list[Sample]:
    """The samples, in the order of the specs, drawn as the study's `surface` says; `log_q` is of `surface.alphas`.

    A stream of random numbers is keyed by the sample and the study's seed, never by an arm.
    """
    from datablame.models.chat import encode_prompt
    from datablame.models.pair import stop_tokens, vocabulary_of
    from datablame.surface.sampler.sampler import Request, sample
    from datablame.surface.sampler.tokens import Settings

    surface = study.surface
    distinct = dict.fromkeys(spec.prompt for spec in specs)
    prompts = {prompt: tuple(encode_prompt(tokenizer, prompt.text)) for prompt in distinct}
    generations = sample(
        after,
        before,
        [Request(prompts[s.prompt], s.alpha, stream_key("sample", study.seed, *s.key)) for s in specs],
        settings=Settings(**{field.name: getattr(surface, field.name) for field in fields(Settings)}),
        stop_ids=stop_tokens(tokenizer, after),
        vocabulary_size=vocabulary_of(tokenizer),
        batch_rows=surface.batch_rows,
        alphas=surface.alphas,
        log_probabilities=log_probabilities,
    )
    texts = [
        tokenizer.decode(made.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        for made in generations
    ]
    return [
        Sample(s.prompt.id, s.prompt.behaviour, s.prompt.split, s.alpha, s.index, text, *made)
        for s, text, made in zip(specs, texts, generations, strict=True)
    ]
