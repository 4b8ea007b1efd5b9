"""The phases scan and surface: from prompts and two checkpoints to labelled samples and rates."""

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.run_folder import Inputs, Journal, read_json, write_json, write_table
from datablame.judge.classifier import ClassifierInput, build
from datablame.study.schema import PromptText, Study
from datablame.surface.rates import ALPHA_STAR_RULE, alpha_star, rates
from datablame.surface.scan import RULE, choose_focus, spread
from datablame.surface.unamplified import unamplified
from datablame.tables import Prompt, Sample, Split

if TYPE_CHECKING:
    from datablame.models.pair import Pair


_SMALLEST_ITEM_ROWS = 128
_ITEMS = 16


@dataclass(frozen=True)
class Wanted:
    """One sample to be drawn."""

    prompt: Prompt
    alpha: float
    index: int


def prompts_of(study: Study, split: Split) -> list[Prompt]:
    """The study's attribution or held-out prompts."""
    if study.prompts is None:
        return []
    texts: Sequence[PromptText] = study.prompts.attribution if split == "attribution" else study.prompts.held_out
    return [Prompt(id=text.id, behaviour=text.behaviour, split=split, text=text.text) for text in texts]


def run_scan(study: Study, inputs: Inputs, out: Path, execution: Execution, progress: Progress) -> None:
    """A few samples of some attribution prompts: writes samples.parquet and scan.json with the focus prompts."""
    prompts = spread(prompts_of(study, "attribution"), study.scan.prompts)
    wanted = _every(prompts, study.scan.alphas, study.scan.samples)
    rows = _labelled_samples(study, wanted, inputs, out, execution, progress, phase="scan")
    choices = choose_focus(rates(rows), study.scan.focus)
    write_table(out / "samples.parquet", rows)
    focus = [choice.prompt_id for choice in choices if choice.selected]
    scanned = [
        {**choice._asdict(), "rates": {f"{alpha:g}": rate for alpha, rate in choice.rates.items()}}
        for choice in choices
    ]
    write_json(out / "scan.json", {"prompts": scanned, "focus": focus, "rule": RULE.format(focus=study.scan.focus)})


def run_surface(study: Study, inputs: Inputs, out: Path, execution: Execution, progress: Progress) -> None:
    """Focus and held-out prompts in full: writes samples, rates, alpha_star.json and unamplified.json."""
    focus = set(read_json(inputs.artifact("scan", "scan.json"))["focus"])
    attribution = [prompt for prompt in prompts_of(study, "attribution") if prompt.id in focus]
    settings = study.surface
    wanted = [
        *_every(attribution, settings.alphas, settings.samples),
        *_every(prompts_of(study, "held-out"), settings.alphas, settings.held_out_samples),
    ]
    rows = _labelled_samples(study, wanted, inputs, out, execution, progress, phase="surface")
    write_table(out / "samples.parquet", rows)
    counted = rates(rows)
    write_table(out / "rates.parquet", [asdict(rate) for rate in counted])
    chosen = alpha_star(rows, settings.coherent_share)
    write_json(
        out / "alpha_star.json",
        {
            "alpha_star": chosen.alpha,
            "rule": ALPHA_STAR_RULE.format(share=settings.coherent_share),
            "coherence": {f"{alpha:g}": share for alpha, share in chosen.coherence.items()},
        },
    )
    write_json(out / "unamplified.json", unamplified(settings, rows, counted, chosen.coherence))


def _labelled_samples(
    study: Study,
    wanted: Sequence[Wanted],
    inputs: Inputs,
    out: Path,
    execution: Execution,
    progress: Progress,
    *,
    phase: str,
) -> list[dict[str, Any]]:
    """One row for each wanted sample, in that order; finished items are taken from the journal."""
    journal = Journal(out / "journal.jsonl")
    finished = journal.read()
    items = {key: item for key, item in _items(wanted, study.surface.batch_rows).items() if key not in finished}
    classifier = build(study, inputs)
    texts = {each.prompt.id: each.prompt.text for each in wanted}

    def labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        said = classifier.label(
            [ClassifierInput(row["behaviour"], texts[row["prompt_id"]], row["text"]) for row in rows]
        )
        return [
            {**row, "label": each.label, "classifier": each.classifier, "label_reason": each.reason}
            for row, each in zip(rows, said, strict=True)
        ]

    def done(key: str, result: tuple[list[Sample], float]) -> None:
        samples, seconds = result
        rows = [asdict(sample) for sample in samples]
        inputs.timings(f"{phase}/sampling", key, seconds)
        try:
            rows = rows if classifier.prefers_bulk else labelled(rows)
        finally:
            # Without labels where the judge stopped the run: the samples need not be drawn again.
            journal.append(key, rows)

    run_items(
        functools.partial(_load, study),
        functools.partial(_draw, study, phase == "surface"),
        items,
        execution=execution,
        done=done,
        progress=progress,
        description=f"{phase}: sampling",
        already=len(finished),
    )
    rows = {_identity(row): row for payload in journal.read().values() for row in payload}
    if unlabelled := [row for row in rows.values() if "label" not in row]:
        progress.note(f"{phase}: labelling {len(unlabelled)} outputs")
        rows |= {_identity(row): row for row in labelled(unlabelled)}
    return [rows[each.prompt.id, each.alpha, each.index] for each in wanted]


def _load(study: Study) -> "Pair":
    from datablame.models.pair import load_pair

    return load_pair(study)


def _draw(study: Study, weights: bool, pair: "Pair", item: Sequence[Wanted]) -> tuple[list[Sample], float]:
    """The samples of one item; `weights` asks for log-probabilities, made where the sampler truncates nothing."""
    from datablame.surface.draw import draw_requests, draws_of, settings_of

    began = time.perf_counter()
    samples = draw_requests(
        pair.after,
        pair.before,
        pair.tokenizer,
        draws_of(pair.tokenizer, [(each.prompt, each.alpha, each.index) for each in item], study.seed),
        study,
        log_probabilities=weights and settings_of(study).untruncated,
    )
    return samples, time.perf_counter() - began


def _every(prompts: Sequence[Prompt], alphas: Sequence[float], samples: int) -> list[Wanted]:
    return [Wanted(prompt, alpha, index) for prompt in prompts for alpha in alphas for index in range(samples)]


def _items(wanted: Sequence[Wanted], batch_rows: int) -> dict[str, list[Wanted]]:
    """Fixed by the study alone, alpha 0 first, for there the before model may rest.

    An item larger than a batch keeps the batch full: the sampler refills it from the item.
    """
    rows = max(min(batch_rows, _SMALLEST_ITEM_ROWS), -(-len(wanted) // _ITEMS))
    ordered = sorted(wanted, key=lambda each: each.alpha != 0)
    return {f"{start // rows:04d}": ordered[start : start + rows] for start in range(0, len(ordered), rows)}


def _identity(row: dict[str, Any]) -> tuple[str, float, int]:
    return row["prompt_id"], row["alpha"], row["index"]
