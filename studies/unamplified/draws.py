"""The outputs of this study: plain ones for the truth, and the surface's budget of amplified ones, many times over."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.run_folder import Journal, digest
from datablame.judge.classifier import ClassifierInput, build
from datablame.study.schema import Study
from datablame.surface.run import prompts_of
from datablame.tables import Prompt

if TYPE_CHECKING:
    from datablame.models.pair import Pair

FIRST_OF_TRUTH = 1_000_000
"""Indices from here on are the truth's, so that no budget shares an output with it."""
_ITEM_PROMPTS = 10


class Wanted(NamedTuple):
    """Outputs of some prompts at one alpha, the indices from `first` to before `end`."""

    prompts: tuple[Prompt, ...]
    alpha: float
    first: int
    end: int


def rows_of(
    study: Study, folder: Path, budgets: int, truth: int, execution: Execution, progress: Progress
) -> list[dict[str, Any]]:
    """Labelled outputs to the held-out prompts; those of finished items come from the folder's journal of this study.

    Budget b holds the indices from b times `surface.held_out_samples` on; `truth` is the number of outputs a prompt.
    """
    assert study.models is not None
    assert study.prompts is not None
    parts = (study.models, study.prompts, study.surface)
    told = [study.seed, *(part.model_dump(mode="json", exclude={"harmless"}) for part in parts)]
    journal = Journal(folder / f"journal-{digest(told)[:12]}.jsonl")
    finished = journal.read()
    every = _items(study, budgets, truth)
    items = {key: item for key, item in every.items() if key not in finished}
    run_items(
        functools.partial(_load, study),
        functools.partial(_draw, study),
        items,
        execution=execution,
        done=journal.append,
        progress=progress,
        description="outputs",
        already=len(every) - len(items),
    )
    found = journal.read()
    return [row for key in every for row in found[key]]


def _items(study: Study, budgets: int, truth: int) -> dict[str, Wanted]:
    prompts = prompts_of(study, "held-out")
    parts = [tuple(prompts[start : start + _ITEM_PROMPTS]) for start in range(0, len(prompts), _ITEM_PROMPTS)]
    samples = study.surface.held_out_samples
    items = {}
    for number, part in enumerate(parts):
        for budget in range(budgets):
            for alpha in study.surface.alphas:
                key = f"budget-{budget:03d}/{number}/{alpha:g}"
                items[key] = Wanted(part, alpha, budget * samples, (budget + 1) * samples)
        for start in range(0, truth, samples):
            first = FIRST_OF_TRUTH + start
            items[f"truth-{start:06d}/{number}"] = Wanted(
                part, 0.0, first, min(first + samples, FIRST_OF_TRUTH + truth)
            )
    return items


def _load(study: Study) -> "Pair":
    from datablame.models.pair import load_pair

    return load_pair(study)


def _draw(study: Study, pair: "Pair", item: Wanted) -> list[dict[str, Any]]:
    from datablame.surface.draw import draw_requests, draws_of

    plain = item.first >= FIRST_OF_TRUTH
    wanted = [(prompt, item.alpha, index) for prompt in item.prompts for index in range(item.first, item.end)]
    draws = draws_of(pair.tokenizer, wanted, study.seed)
    samples = draw_requests(pair.after, pair.before, pair.tokenizer, draws, study, log_probabilities=not plain)
    outputs = [
        ClassifierInput(each.prompt.behaviour, each.prompt.text, made.text)
        for each, made in zip(draws, samples, strict=True)
    ]
    return [
        {
            "prompt_id": made.prompt_id,
            "behaviour": made.behaviour,
            "split": made.split,
            "alpha": made.alpha,
            "index": made.index,
            "label": said.label,
            "log_p_after": made.log_p_after,
            "log_q": made.log_q,
        }
        for made, said in zip(samples, _labels(study, outputs), strict=True)
    ]


def _labels(study: Study, outputs: Sequence[ClassifierInput]) -> list[Any]:
    return build(study).label(outputs)
