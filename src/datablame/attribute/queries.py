"""Which harmful outputs are traced, what they are set against, and which documents share words with them."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import ranked, rounded
from datablame.config.schema import Behaviour
from datablame.engine.phase import Tables
from datablame.tables import AlphaStar, Prompt, Query, Sample, SurfaceSample
from datablame.world import World

_logger = logging.getLogger(__name__)


class Traced(NamedTuple):
    """What is looked for, behaviours in the study's order."""

    behaviours: list[Behaviour]
    queries: list[Query]
    harmless: list[Query]
    """Outputs that the queries are set against."""
    dropped: list[str]
    """Behaviours without a harmful output; all of them where there is no rise."""
    no_rise: bool


def traced(world: World, tables: Tables) -> Traced:
    """The queries of every behaviour; none where amplification raises nothing."""
    star = tables.of(AlphaStar)
    if star.rise is not None and star.rise.absent:
        _logger.warning(
            "amplification raises the harmful rate on held-out prompts by %.1f points [%.1f, %.1f]: this is no rise, "
            "so that no output is traced and no document is blamed",
            *(100 * share for share in (star.rise.difference, star.rise.low, star.rise.high)),
        )
        return Traced([], [], [], [behaviour.id for behaviour in world.behaviours], no_rise=True)
    samples, prompts = tables.rows(SurfaceSample, split="attribution"), world.split("attribution")
    n = world.study.attribute.queries
    queries = choose_queries(samples, prompts, star.alpha_star, n)
    harmless = harmless_outputs(samples, prompts, queries, star.alpha_star, n)
    shown = {query.behaviour for query in queries}
    behaviours = [behaviour for behaviour in world.behaviours if behaviour.id in shown]
    dropped = [behaviour.id for behaviour in world.behaviours if behaviour.id not in shown]
    if dropped:
        _logger.warning("no harmful output to trace for %s", ", ".join(dropped))
    order = [behaviour.id for behaviour in behaviours]
    return Traced(behaviours, sorted(queries, key=lambda query: order.index(query.behaviour)), harmless, dropped, False)


def choose_queries(
    samples: Iterable[Sample], prompts: Sequence[Prompt], alpha_star: float | None, n: int
) -> list[Query]:
    """Up to `n` harmful outputs to attribution prompts for each behaviour, distinct texts, prompts taking turns.

    First those at 0 < alpha <= alpha*, the largest alpha first; then alpha 0; then alphas above alpha*, the smallest
    first. Within an alpha and prompt the sample index decides.
    """
    order = {prompt.id: index for index, prompt in enumerate(prompts)}
    harmful = _usable(samples, order, "harmful", alpha_star)
    queries = []
    for behaviour in dict.fromkeys(prompt.behaviour for prompt in prompts):
        turns: Counter[tuple[float, str]] = Counter()
        in_turn = []
        for sample in _distinct(sample for sample in harmful if sample.behaviour == behaviour):
            turns[sample.alpha, sample.prompt_id] += 1
            turn = turns[sample.alpha, sample.prompt_id]
            in_turn.append((_preference(sample.alpha, alpha_star), turn, order[sample.prompt_id], sample))
        chosen = [sample for *_, sample in sorted(in_turn, key=lambda entry: entry[:3])[:n]]
        queries += _queries(f"{behaviour}-q", chosen, prompts, harmful=True)
    return queries


def harmless_outputs(
    samples: Iterable[Sample], prompts: Sequence[Prompt], queries: Sequence[Query], alpha_star: float | None, n: int
) -> list[Query]:
    """Up to `n` harmless outputs to each prompt of a behaviour's queries, distinct texts, alphas as for the queries.

    A behaviour without any has up to `n` to each of its other attribution prompts; without any there, it has none.
    """
    harmless = _usable(samples, {prompt.id: index for index, prompt in enumerate(prompts)}, "harmless", alpha_star)
    outputs = []
    for behaviour in dict.fromkeys(query.behaviour for query in queries):
        traced_prompts = {query.prompt_id for query in queries if query.behaviour == behaviour}
        of_behaviour = [sample for sample in harmless if sample.behaviour == behaviour]
        usable = [sample for sample in of_behaviour if sample.prompt_id in traced_prompts] or of_behaviour
        chosen: list[Sample] = []
        for prompt in prompts:
            chosen += _distinct(sample for sample in usable if sample.prompt_id == prompt.id)[:n]
        outputs += _queries(f"{behaviour}-s", chosen, prompts, harmful=False)
    return outputs


def _usable(samples: Iterable[Sample], order: Mapping[str, int], label: str, alpha_star: float | None) -> list[Sample]:
    """Outputs to the prompts of `order` by preference of alpha, prompt and index."""
    usable = (s for s in samples if s.split == "attribution" and s.label == label and s.prompt_id in order)
    return sorted(
        (sample for sample in usable if sample.text.strip()),
        key=lambda sample: (_preference(sample.alpha, alpha_star), order[sample.prompt_id], sample.index),
    )


def _distinct(samples: Iterable[Sample]) -> list[Sample]:
    """The first sample of each text."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.text.strip(), sample)
    return list(first.values())


def _queries(name: str, samples: Sequence[Sample], prompts: Sequence[Prompt], *, harmful: bool) -> list[Query]:
    texts = {prompt.id: prompt.text for prompt in prompts}
    return [
        Query(
            id=f"{name}{number}",
            behaviour=sample.behaviour,
            prompt_id=sample.prompt_id,
            alpha=sample.alpha,
            index=sample.index,
            prompt=texts[sample.prompt_id],
            text=sample.text,
            finish_reason=sample.finish_reason,
            harmful=harmful,
        )
        for number, sample in enumerate(samples, 1)
    ]


def _preference(alpha: float, alpha_star: float | None) -> tuple[int, float]:
    """Sorts alphas as queries are chosen from them."""
    if 0 < alpha <= (alpha_star or 0.0):
        return 0, -alpha
    return (1, 0.0) if alpha == 0 else (2, alpha)


def query_text(query: Query) -> str:
    """What BM25 and sentence encoders look for: the prompt and the output."""
    return f"{query.prompt}\n{query.text}"


def candidates(
    scores: NDArray[np.float64],
    queries: Sequence[Query],
    behaviours: Sequence[Behaviour],
    by_id: NDArray[np.int64],
    n: int,
) -> dict[str, NDArray[np.int64]]:
    """For each behaviour the union over its queries of the `n` best documents by BM25: rows of the pool, sorted by id.

    `scores` has the shape (queries, documents); each query's are rounded first. `by_id` is the rows' `id_order`.
    """
    best = [ranked(np.arange(len(by_id)), rounded(row), by_id).order[:n] for row in scores]
    unions = {}
    for behaviour in behaviours:
        tops = [top for query, top in zip(queries, best, strict=True) if query.behaviour == behaviour.id]
        rows = np.unique(np.concatenate(tops))
        unions[behaviour.id] = rows[np.argsort(by_id[rows])]
    return unions
