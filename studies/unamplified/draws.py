"""The outputs of this study: plain ones for the truth, and the surface's budget of amplified ones, many times over."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datablame.config.schema import Models, Study
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.files import Journal, digest
from datablame.engine.phase import Work
from datablame.judge.choice import ClassifierInput, build
from datablame.surface.phase import DrawnSample, SampleSpec, draw, sample_specs
from datablame.tables import Sample
from datablame.world import World

if TYPE_CHECKING:
    from datablame.models.pair import Pair

FIRST_OF_TRUTH = 1_000_000
"""Indices from here on are the truth's, so that no budget shares an output with it."""
_ITEM_PROMPTS = 10


def samples_of(
    world: World, folder: Path, budgets: int, truth: int, execution: Execution, progress: Progress
) -> list[Sample]:
    """Labelled outputs to the held-out prompts; those of finished items come from the folder's journal of this study.

    Budget b holds the indices from b times `surface.held_out_samples` on; `truth` is the number of outputs a prompt.
    Texts are not kept.
    """
    journal = Journal(folder / f"journal-{digest([world.part('identity'), world.part('surface')])[:12]}.jsonl")
    finished = journal.read()
    every = _items(world, budgets, truth)
    items = {key: item for key, item in every.items() if key not in finished}
    work = Work(folder, "surface", folder, execution, progress, lambda what, key, seconds: None)
    classifier = build(world.study, world.judge, work)
    texts = {prompt.id: prompt.text for prompt in world.prompts}

    def done(key: str, samples: list[DrawnSample]) -> None:
        outputs = [ClassifierInput(sample.behaviour, texts[sample.prompt_id], sample.text) for sample in samples]
        journal.append(
            key,
            [
                asdict(replace(sample, text="", token_ids=(), label=label.label))
                for sample, label in zip(samples, classifier.label(outputs), strict=True)
            ],
        )

    run_items(
        functools.partial(_load, world.models),
        functools.partial(_draw, world.study),
        items,
        execution=execution,
        done=done,
        progress=progress,
        description="outputs",
        already=len(every) - len(items),
    )
    journalled = journal.read()
    return [DrawnSample(**fields) for key in every for fields in journalled[key]]


def _items(world: World, budgets: int, truth: int) -> dict[str, list[SampleSpec]]:
    prompts, surface = world.split("held-out"), world.study.surface
    samples = surface.held_out_samples
    items = {}
    for number, start in enumerate(range(0, len(prompts), _ITEM_PROMPTS)):
        part = prompts[start : start + _ITEM_PROMPTS]
        for budget in range(budgets):
            for alpha in surface.alphas:
                indices = range(budget * samples, (budget + 1) * samples)
                items[f"budget-{budget:03d}/{number}/{alpha:g}"] = sample_specs(part, (alpha,), indices)
        for first in range(0, truth, samples):
            indices = range(FIRST_OF_TRUTH + first, FIRST_OF_TRUTH + min(first + samples, truth))
            items[f"truth-{first:06d}/{number}"] = sample_specs(part, (0.0,), indices)
    return items


def _load(models: Models) -> "Pair":
    from datablame.models.pair import load_pair

    return load_pair(models)


def _draw(study: Study, pair: "Pair", item: Sequence[SampleSpec]) -> list[DrawnSample]:
    amplified = item[0].index < FIRST_OF_TRUTH
    return draw(pair.after, pair.before, pair.agreed, item, study, log_probabilities=amplified)
