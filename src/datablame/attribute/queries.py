"""Which harmful outputs are traced, what they are set against, and which documents share words with them."""

import logging
import math
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.rankings import Indices, ranked, rounded
from datablame.engine.phase import Tables
from datablame.tables import AlphaStar, LabelName, Prompt, Query, Sample, SurfaceSample
from datablame.world import World

_logger = logging.getLogger(__name__)
_TOLD_APART: tuple[LabelName, ...] = ("harmful", "harmless", "refused")
_LABELLED = 100
_AMPLIFIED = 200
"""Amplified outputs at most."""
_LEAST_GAIN = math.log(20)
"""From which on evidence is strong (Kass and Raftery 1995)."""


class Amplified(NamedTuple):
    """Amplified outputs, and how much likelier than before after makes each."""

    outputs: list[Query]
    gains: list[float]
    """log p_after - log p_before, nats."""
    weak: int
    """Distinct amplified outputs that after makes less than 20 times likelier than before, which are left out."""


def traced(world: World, tables: Tables) -> list[Query]:
    """The harmful outputs that are traced, behaviours in the study's order, then what they are set against.

    None where amplification raises nothing.
    """
    star = tables.of(AlphaStar)
    if star.rise is not None and star.rise.absent:
        _logger.warning(
            "amplification raises the harmful rate on held-out prompts by %.1f points [%.1f, %.1f]: this is no rise, "
            "so that no output is traced and no document is blamed",
            *(100 * share for share in (star.rise.difference, star.rise.low, star.rise.high)),
        )
        return []
    samples, prompts = tables.rows(SurfaceSample, split="attribution"), world.split("attribution")
    n = world.study.attribute.queries
    queries = choose_queries(samples, prompts, star.alpha_star, n)
    harmless = harmless_outputs(samples, prompts, queries, star.alpha_star, n)
    order, shown = [behaviour.id for behaviour in world.behaviours], {query.behaviour for query in queries}
    if dropped := [behaviour for behaviour in order if behaviour not in shown]:
        _logger.warning("no harmful output to trace for %s", ", ".join(dropped))
    return [*sorted(queries, key=lambda query: order.index(query.behaviour)), *harmless]


def choose_queries(
    samples: Iterable[Sample], prompts: Sequence[Prompt], alpha_star: float | None, n: int
) -> list[Query]:
    """Up to `n` harmful outputs to attribution prompts for each behaviour, distinct texts, prompts taking turns.

    First those at 0 < alpha <= alpha*, the largest alpha first; then alpha 0; then alphas above alpha*, the smallest
    first. Within an alpha and prompt the sample index decides.
    """
    harmful = _distinct(samples, prompts, "harmful", alpha_star)
    queries = []
    for behaviour in dict.fromkeys(prompt.behaviour for prompt in prompts):
        of_behaviour = [sample for sample in harmful if sample.behaviour == behaviour]
        queries += _queries(f"{behaviour}-q", _in_turns(of_behaviour, alpha_star, n), prompts, harmful=True)
    return queries


def harmless_outputs(
    samples: Iterable[Sample], prompts: Sequence[Prompt], queries: Sequence[Query], alpha_star: float | None, n: int
) -> list[Query]:
    """Up to `n` harmless outputs to each prompt of a behaviour's queries, distinct texts, alphas as for the queries.

    A behaviour without any has up to `n` to each of its other attribution prompts; without any there, it has none.
    """
    harmless = _distinct(samples, prompts, "harmless", alpha_star)
    outputs = []
    for behaviour in dict.fromkeys(query.behaviour for query in queries):
        traced_prompts = {query.prompt_id for query in queries if query.behaviour == behaviour}
        of_behaviour = [sample for sample in harmless if sample.behaviour == behaviour]
        usable = [sample for sample in of_behaviour if sample.prompt_id in traced_prompts] or of_behaviour
        of_prompts = [[sample for sample in usable if sample.prompt_id == prompt.id][:n] for prompt in prompts]
        outputs += _queries(f"{behaviour}-s", [*chain(*of_prompts)], prompts, harmful=False)
    return outputs


def labelled_outputs(world: World, tables: Tables) -> dict[LabelName, list[Query]]:
    """Harmful, harmless and refused outputs to attribution prompts, traced or not, chosen as queries are.

    At most 100 of a behaviour and label.
    """
    star = tables.of(AlphaStar).alpha_star
    samples, prompts = tables.rows(SurfaceSample, split="attribution"), world.split("attribution")
    outputs: dict[LabelName, list[Query]] = {}
    for label in _TOLD_APART:
        distinct, outputs[label] = _distinct(samples, prompts, label, star), []
        for behaviour in dict.fromkeys(prompt.behaviour for prompt in prompts):
            of_behaviour = [sample for sample in distinct if sample.behaviour == behaviour]
            chosen = _in_turns(of_behaviour, star, _LABELLED)
            outputs[label] += _queries(f"{behaviour}-{label}", chosen, prompts, harmful=label == "harmful")
    return outputs


def _in_turns(samples: Sequence[Sample], alpha_star: float | None, n: int) -> list[Sample]:
    """The first `n` of the samples, in the order of `_distinct`, within an alpha prompts taking turns."""
    turns = [
        (_preference(alpha, alpha_star), turn, sample)
        for (alpha, _), of_prompt in groupby(samples, key=lambda sample: (sample.alpha, sample.prompt_id))
        for turn, sample in enumerate(of_prompt)
    ]
    return [sample for *_, sample in sorted(turns, key=lambda entry: entry[:2])[:n]]


def amplified(world: World, tables: Tables) -> Amplified:
    """Distinct amplified outputs that training made much likelier, the largest gains first, prompts taking turns.

    At alphas up to alpha*, to attribution prompts. Labels have no say. There are none where there is no alpha*, or
    where log-probabilities were not kept.
    """
    star, prompts = tables.of(AlphaStar).alpha_star, world.split("attribution")
    if star is None:
        return Amplified([], [], 0)
    by_prompt: dict[str, dict[str, tuple[float, Sample]]] = {prompt.id: {} for prompt in prompts}
    samples = tables.rows(SurfaceSample, split="attribution")
    for sample in sorted(samples, key=lambda sample: (-sample.alpha, sample.index)):
        if sample.prompt_id not in by_prompt or not sample.text.strip() or not 0 < sample.alpha <= star:
            continue
        if sample.log_p_after is not None and sample.log_p_before is not None:
            gain = sample.log_p_after - sample.log_p_before
            by_prompt[sample.prompt_id].setdefault(sample.text.strip(), (gain, sample))
    turns = [
        (turn, -gain, sample)
        for distinct in by_prompt.values()
        for turn, (gain, sample) in enumerate(sorted(distinct.values(), key=lambda each: -each[0]))
        if gain >= _LEAST_GAIN
    ]
    weak = sum(map(len, by_prompt.values())) - len(turns)
    first = sorted(turns, key=lambda each: each[:2])[:_AMPLIFIED]
    outputs = _queries("o", [sample for *_, sample in first], prompts, harmful=False)
    return Amplified(outputs, [-loss for _, loss, _ in first], weak)


def _distinct(
    samples: Iterable[Sample], prompts: Sequence[Prompt], label: str, alpha_star: float | None
) -> list[Sample]:
    """As they are preferred, then by prompt; the first of equal texts of a behaviour, or of a prompt if harmless."""
    order = {prompt.id: index for index, prompt in enumerate(prompts)}
    usable = (s for s in samples if s.split == "attribution" and s.label == label and s.prompt_id in order)
    first: dict[tuple[str, str], Sample] = {}
    for sample in sorted(usable, key=lambda s: (_preference(s.alpha, alpha_star), order[s.prompt_id], s.index)):
        if text := sample.text.strip():
            first.setdefault((sample.behaviour if label == "harmful" else sample.prompt_id, text), sample)
    return list(first.values())


def _queries(name: str, samples: Sequence[Sample], prompts: Sequence[Prompt], *, harmful: bool) -> list[Query]:
    texts, queries = {prompt.id: prompt.text for prompt in prompts}, []
    for number, sample in enumerate(samples, 1):
        cell = (sample.behaviour, sample.prompt_id, sample.alpha, sample.index)
        content = (texts[sample.prompt_id], sample.text, sample.finish_reason, sample.drawn_ids)
        queries.append(Query(f"{name}{number}", *cell, *content, harmful))
    return queries


def _preference(alpha: float, alpha_star: float | None) -> tuple[int, float]:
    """Sorts alphas as queries are chosen from them."""
    if 0 < alpha <= (alpha_star or 0.0):
        return 0, -alpha
    return (1, 0.0) if alpha == 0 else (2, alpha)


def query_text(query: Query) -> str:
    """What BM25 and sentence encoders look for: the prompt and the output."""
    return f"{query.prompt}\n{query.text}"


def candidates(scores: NDArray[np.float64], queries: Sequence[Query], by_id: Indices, n: int) -> dict[str, Indices]:
    """For each behaviour the union over its queries of the `n` best documents by BM25: rows of the pool, sorted by id.

    No document without a word of a query is among its best, so that a behaviour may have no candidates.
    `scores` has the shape (queries, documents); each query's are rounded first. `by_id` is the rows' `id_order`.
    """
    best: dict[str, list[Indices]] = {}
    for query, row in zip(queries, scores, strict=True):
        sharing = np.flatnonzero(row)
        best.setdefault(query.behaviour, []).append(ranked(sharing, rounded(row)[sharing], by_id).order[:n])
    unions = {behaviour: np.unique(np.concatenate(tops)) for behaviour, tops in best.items()}
    return {behaviour: rows[np.argsort(by_id[rows])] for behaviour, rows in unions.items()}
