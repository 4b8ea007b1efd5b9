"""Samples named, drawn from a model and labelled; the phases scan and surface make rates of them."""

import functools
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from datablame import tables
from datablame.config.schema import Models, Study
from datablame.engine.execute import run_items
from datablame.engine.phase import Outputs, Phase, Tables, Work
from datablame.errors import PhaseError, problem
from datablame.judge.choice import Classifier, ClassifierInput, build
from datablame.judge.thoughts import UNFINISHED, marked, opened
from datablame.seeds import stream_key
from datablame.surface.rates import RULES, alpha_star, choose_focus, rates, unamplified, why_not
from datablame.surface.tokens import packed, token_parts
from datablame.tables import Prompt, Sample
from datablame.world import World

if TYPE_CHECKING:
    from datablame.models.pair import Pair
    from datablame.models.shared_tokens import Agreed
    from datablame.surface.sampler.sampler import NotFinite

S = TypeVar("S", bound=Sample)
_logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class DrawnSample(Sample):
    """A sample as it is drawn and journalled."""

    token_log_p: str | None = None
    """Of its tokens, as `packed`; no row of samples has it."""


def spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """`n` prompts taken in turn from each behaviour, in the order given."""
    by_behaviour: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_behaviour.setdefault(prompt.behaviour, []).append(prompt)
    turns = (prompt for turn in zip_longest(*by_behaviour.values()) for prompt in turn if prompt is not None)
    return list(islice(turns, n))


def sample_specs(prompts: Iterable[Prompt], alphas: Sequence[float], indices: Sequence[int]) -> list[SampleSpec]:
    """Every (prompt, alpha, index), in this order."""
    return [SampleSpec(prompt, alpha, index) for prompt in prompts for alpha in alphas for index in indices]


def draw(
    after: Any,
    before: Any,
    agreed: "Agreed",
    specs: Sequence[SampleSpec],
    study: Study,
    log_probabilities: bool = False,
    per_token: bool = False,
) -> list[DrawnSample]:
    """The samples, in the order of the specs, drawn as the study's `surface` says; `log_q` is of `surface.alphas`.

    With `log_probabilities` the sums are kept, with `per_token` each token's.

    Raises PhaseError where a model's logits are not finite.
    """
    from datablame.models.chat import encode_prompt
    from datablame.models.pair import stop_tokens
    from datablame.models.template import turn_of
    from datablame.surface.sampler.sampler import NotFinite, Request, sample
    from datablame.surface.sampler.tokens import Settings

    surface, (tokenizer, tokens) = study.surface, agreed
    prompts = {each: tuple(encode_prompt(tokenizer, each.text)) for each in dict.fromkeys(s.prompt for s in specs)}
    # A stream of random numbers is keyed by the sample and the study's seed, never by an arm.
    requests = [Request(prompts[s.prompt], s.alpha, stream_key("sample", study.seed, *s.key)) for s in specs]
    try:
        generations = sample(
            after,
            before,
            requests,
            settings=Settings(**{field.name: getattr(surface, field.name) for field in fields(Settings)}),
            stop_ids=stop_tokens(tokenizer, after, tokens),
            vocabulary_size=tokens.vocabulary_size,
            masked_ids=tokens.masked_ids,
            batch_rows=surface.batch_rows,
            alphas=surface.alphas,
            log_probabilities=log_probabilities,
            per_token=per_token,
        )
    except NotFinite as error:
        raise PhaseError(_not_finite(error, study, specs[error.request])) from error
    thought = opened(turn_of(tokenizer).generation)
    return [
        DrawnSample(
            s.prompt.id,
            s.prompt.behaviour,
            s.prompt.split,
            s.alpha,
            s.index,
            _text(tokenizer, thought, made.token_ids),
            *made[:-1],
            token_log_p=None if made.token_log_p is None else packed(made.token_log_p),
        )
        for s, made in zip(specs, generations, strict=True)
    ]


def _text(tokenizer: Any, thought: str, ids: Sequence[int]) -> str:
    """An output as text, without special tokens unless they mark a thought; its opening may stand in the prompt."""
    whole, plain = (
        thought + tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        for skip in (False, True)
    )
    return str(whole if marked(whole) else plain).strip()


def _not_finite(error: "NotFinite", study: Study, spec: SampleSpec) -> str:
    """Which prompt, which model, and what to do."""
    if error.model is None:
        return problem("surface", "mixture", prompt=spec.prompt.id, alpha=spec.alpha)
    reference = getattr(study.models, error.model)
    remedy = "no weights" if reference.dtype == "float32" else "small type"
    return problem("surface", remedy, prompt=spec.prompt.id, role=error.model, reference=reference)


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


def _scan(world: World, _: Tables, work: Work) -> Outputs:
    """A few samples, and which of their prompts come into focus."""
    samples = _labelled_samples(tables.ScanSample, world, work, scan_specs(world))
    focus = world.study.scan.focus
    return {
        tables.ScanSample: samples,
        tables.ScannedPrompt: choose_focus(rates(samples), focus),
        tables.Scan: tables.Scan(RULES["focus"].format(focus=focus)),
    }


def _surface(world: World, earlier: Tables, work: Work) -> Outputs:
    """Samples of focus and held-out prompts and their tokens, rates, alpha* with its rise, and the rate at alpha 0."""
    focus_ids = {prompt.prompt_id for prompt in earlier.rows(tables.ScannedPrompt, selected=True)}
    samples = _labelled_samples(tables.SurfaceSample, world, work, surface_specs(world, focus_ids))
    counted, surface = rates(samples), world.study.surface
    outputs: dict[type, Any] = {
        tables.SurfaceSample: samples,
        tables.Rate: counted,
        tables.AlphaStar: alpha_star(counted, surface.coherent_share, world.seed),
        tables.Unamplified: unamplified(surface, samples, counted),
    }
    if world.study.report.tokens:
        outputs[tables.SampleTokens] = token_parts(world, work.journal, samples)
    return outputs


SCAN = Phase("scan", 5, ("identity", "scan", "sampling", "judge"), (), _scan)
SURFACE = Phase("surface", 5, ("identity", "surface", "judge", "tokens"), (SCAN,), _surface)


def _labelled_samples(row: type[S], world: World, work: Work, specs: Sequence[SampleSpec]) -> list[S]:
    """One row for each spec, in that order; finished items are taken from the journal."""
    study, journal, in_full = world.study, work.journal, row is tables.SurfaceSample
    finished = journal.read()
    items = {key: item for key, item in _items(specs, study.surface.batch_rows).items() if key not in finished}
    classifier = build(study, world.judge, work)
    texts = {spec.prompt.id: spec.prompt.text for spec in specs}

    def done(key: str, result: tuple[list[DrawnSample], float]) -> None:
        samples, seconds = result
        work.timings(f"{work.phase}/sampling", key, seconds)
        try:
            samples = samples if classifier.prefers_bulk else _labelled(classifier, texts, samples)
        finally:
            # Without labels where the judge stopped the run: the samples need not be drawn again.
            journal.append(key, [asdict(sample) for sample in samples])

    run_items(
        functools.partial(_load_pair, world.models),
        functools.partial(
            _draw_item, study, in_full and why_not(study.surface) is None, in_full and study.report.tokens
        ),
        items,
        execution=work.execution,
        root=work.root,
        done=done,
        progress=work.progress,
        description=f"{work.phase}: sampling",
        already=len(finished),
    )
    of_journal = TypeAdapter(row).validate_python
    samples = [of_journal(values) for payload in journal.read().values() for values in payload]
    if unlabelled := [sample for sample in samples if sample.label is None]:
        work.progress.note(f"{work.phase}: labelling {len(unlabelled)} outputs")
        samples += _labelled(classifier, texts, unlabelled)
    if unfinished := sum(sample.label_reason == UNFINISHED for sample in samples):
        message = "%s: %d of %d outputs end inside a thought and are unscored; raise surface.max_new_tokens"
        _logger.warning(message, work.phase, unfinished, len(samples))
    by_key = {(sample.prompt_id, sample.alpha, sample.index): sample for sample in samples}
    return [by_key[spec.key] for spec in specs]


def _items(specs: Sequence[SampleSpec], batch_rows: int) -> dict[str, list[SampleSpec]]:
    """Fixed by the study alone, alpha 0 first, for there before may rest; the sampler refills a batch from its item."""
    rows = max(min(batch_rows, _SMALLEST_ITEM_ROWS), -(-len(specs) // _ITEMS))
    ordered = sorted(specs, key=lambda spec: spec.alpha != 0)
    return {f"{start // rows:04d}": ordered[start : start + rows] for start in range(0, len(ordered), rows)}


def _load_pair(models: Models) -> "Pair":
    from datablame.models.pair import load_pair

    return load_pair(models)


def _draw_item(
    study: Study, log_probabilities: bool, per_token: bool, pair: "Pair", item: Sequence[SampleSpec]
) -> tuple[list[DrawnSample], float]:
    """The samples of one item and the seconds they took."""
    began = time.perf_counter()
    samples = draw(pair.after, pair.before, pair.agreed, item, study, log_probabilities, per_token)
    return samples, time.perf_counter() - began


def _labelled(classifier: Classifier, texts: Mapping[str, str], samples: Sequence[S]) -> list[S]:
    labels = classifier.label([ClassifierInput(s.behaviour, texts[s.prompt_id], s.text) for s in samples])
    return [
        replace(sample, label=label.label, classifier=label.classifier, label_reason=label.reason)
        for sample, label in zip(samples, labels, strict=True)
    ]
