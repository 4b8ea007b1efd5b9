"""Samples named, drawn from a model and labelled; the phases scan and surface make rates of them."""

import functools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from datablame.config.schema import Study
from datablame.engine.execute import run_items
from datablame.engine.phase import Outputs, Phase, Tables, Work
from datablame.judge.choice import Classifier, ClassifierInput, build
from datablame.seeds import stream_key
from datablame.surface.rates import FOCUS_RULE, alpha_star, choose_focus, rates, unamplified, why_not
from datablame.tables import (
    AlphaStar,
    Prompt,
    Rate,
    Sample,
    Scan,
    ScannedPrompt,
    ScanSample,
    SurfaceSample,
    Unamplified,
)
from datablame.world import World

if TYPE_CHECKING:
    from datablame.models.pair import Pair

S = TypeVar("S", bound=Sample)

_SMALLEST_ITEM_ROWS = 128
_ITEMS = 16


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


def scan_specs(world: World) -> list[SampleSpec]:
    """What the scan draws: a few samples of some attribution prompts."""
    scan = world.study.scan
    return sample_specs(spread(world.split("attribution"), scan.prompts), scan.alphas, range(scan.samples))


def surface_specs(world: World, focus_ids: Collection[str]) -> list[SampleSpec]:
    """What the surface phase draws: the attribution prompts in focus and all held-out prompts, in full."""
    surface = world.study.surface
    focus = [prompt for prompt in world.split("attribution") if prompt.id in focus_ids]
    return [
        *sample_specs(focus, surface.alphas, range(surface.samples)),
        *sample_specs(world.split("held-out"), surface.alphas, range(surface.held_out_samples)),
    ]


def _scan(world: World, tables: Tables, work: Work) -> Outputs:
    """A few samples, and which of their prompts come into focus."""
    samples = _labelled_samples(ScanSample, world, work, scan_specs(world))
    focus = world.study.scan.focus
    return {
        ScanSample: samples,
        ScannedPrompt: choose_focus(rates(samples), focus),
        Scan: Scan(FOCUS_RULE.format(focus=focus)),
    }


def _surface(world: World, tables: Tables, work: Work) -> Outputs:
    """Samples of focus and held-out prompts, their rates, alpha* with its rise, and the rate at alpha 0."""
    focus_ids = {prompt.prompt_id for prompt in tables.rows(ScannedPrompt, selected=True)}
    samples = _labelled_samples(SurfaceSample, world, work, surface_specs(world, focus_ids))
    counted, surface = rates(samples), world.study.surface
    return {
        SurfaceSample: samples,
        Rate: counted,
        AlphaStar: alpha_star(samples, counted, surface.coherent_share, world.seed),
        Unamplified: unamplified(surface, samples, counted),
    }


SCAN = Phase("scan", 4, ("identity", "scan", "sampling", "judge"), (), _scan)
SURFACE = Phase("surface", 4, ("identity", "surface", "judge"), (SCAN,), _surface)


def _labelled_samples(row: type[S], world: World, work: Work, specs: Sequence[SampleSpec]) -> list[S]:
    """One row for each spec, in that order; finished items are taken from the journal."""
    study, journal = world.study, work.journal
    finished = journal.read()
    items = {key: item for key, item in _items(specs, study.surface.batch_rows).items() if key not in finished}
    classifier = build(study, world.judge, work)
    texts = {spec.prompt.id: spec.prompt.text for spec in specs}

    def done(key: str, result: tuple[list[Sample], float]) -> None:
        samples, seconds = result
        work.timings(f"{work.phase}/sampling", key, seconds)
        try:
            samples = samples if classifier.prefers_bulk else _labelled(classifier, texts, samples)
        finally:
            # Without labels where the judge stopped the run: the samples need not be drawn again.
            journal.append(key, [asdict(sample) for sample in samples])

    run_items(
        functools.partial(_load_pair, study),
        functools.partial(_draw_item, study, row is SurfaceSample),
        items,
        execution=work.execution,
        done=done,
        progress=work.progress,
        description=f"{work.phase}: sampling",
        already=len(finished),
    )
    samples = [_row(row, values) for payload in journal.read().values() for values in payload]
    if unlabelled := [sample for sample in samples if sample.label is None]:
        work.progress.note(f"{work.phase}: labelling {len(unlabelled)} outputs")
        samples += _labelled(classifier, texts, unlabelled)
    by_key = {(sample.prompt_id, sample.alpha, sample.index): sample for sample in samples}
    return [by_key[spec.key] for spec in specs]


def _items(specs: Sequence[SampleSpec], batch_rows: int) -> dict[str, list[SampleSpec]]:
    """Fixed by the study alone, alpha 0 first, for there the before model may rest.

    An item larger than a batch keeps the batch full: the sampler refills it from the item.
    """
    rows = max(min(batch_rows, _SMALLEST_ITEM_ROWS), -(-len(specs) // _ITEMS))
    ordered = sorted(specs, key=lambda spec: spec.alpha != 0)
    return {f"{start // rows:04d}": ordered[start : start + rows] for start in range(0, len(ordered), rows)}


def _load_pair(study: Study) -> "Pair":
    from datablame.models.pair import load_pair

    return load_pair(study)


def _draw_item(
    study: Study, log_probabilities: bool, pair: "Pair", item: Sequence[SampleSpec]
) -> tuple[list[Sample], float]:
    """The samples of one item and the seconds they took; log-probabilities where nothing is truncated."""
    began = time.perf_counter()
    log_probabilities = log_probabilities and why_not(study.surface) is None
    samples = draw(pair.after, pair.before, pair.tokenizer, item, study, log_probabilities=log_probabilities)
    return samples, time.perf_counter() - began


def _labelled(classifier: Classifier, texts: Mapping[str, str], samples: Sequence[S]) -> list[S]:
    labels = classifier.label([ClassifierInput(s.behaviour, texts[s.prompt_id], s.text) for s in samples])
    return [
        replace(sample, label=label.label, classifier=label.classifier, label_reason=label.reason)
        for sample, label in zip(samples, labels, strict=True)
    ]


def _row(row: type[S], journalled: Mapping[str, Any]) -> S:
    """A row of a journal, where tuples are lists."""
    values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in journalled.items()}
    return row(**values)
