"""The phase attribute: which documents each method holds responsible for each behaviour, and how far methods agree."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.attribute.brought import check_pool, check_scored
from datablame.attribute.contrast import ContrastTask, run_contrast
from datablame.attribute.evidence import Activations, Contrast, Evidence, Query
from datablame.attribute.judged import Judged
from datablame.attribute.passes import Passes, run_passes
from datablame.attribute.pool import Corpus, pool_summary, rankable
from datablame.attribute.queries import candidates, choose_queries, query_text, safe_outputs
from datablame.attribute.registry import Method, chosen
from datablame.attribute.results import Results, write_results
from datablame.attribute.scoring import scored_by
from datablame.attribute.work import Task
from datablame.engine.execute import Execution, Progress
from datablame.engine.run_folder import Inputs, Journal, read_json, read_table
from datablame.study.schema import Behaviour, Study
from datablame.surface.rise import rise
from datablame.tables import Score
from datablame.world import bm25
from datablame.world.documents import read_pool
from datablame.world.duplicates import full_text
from datablame.world.kinds import check_kind

if TYPE_CHECKING:
    from datablame.models.chat import Encoded


_logger = logging.getLogger(__name__)
_PASSES = {
    "gradients": ("queries", "gradients"),
    "changes": ("queries", "gradients"),
    "activations": ("queries", "activations"),
    "contrast": ("responses",),
}
"""The passes that a method needs."""


class _Traced(NamedTuple):
    """What is looked for, behaviours in the study's order."""

    behaviours: list[Behaviour]
    queries: list[Query]
    safe: list[Query]
    """Harmless outputs that the queries are set against."""
    dropped: list[str]
    """Behaviours without a harmful output; all of them where there is no rise."""
    no_rise: bool


def run(study: Study, inputs: Inputs, out: Path, execution: Execution, progress: Progress) -> None:
    """Score the pool or the BM25 candidates by every method: writes queries, candidates, scores and comparisons.

    Without a harmful output, or without a rise, there is nothing to trace, and the artifacts are empty.

    Raises:
        RequestError: the pool cannot be read, no document's response fits, or the checkpoint lacks a layer.
        PhaseError: memory ran out for a single document, or the model yields numbers that are not finite.
    """
    from threadpoolctl import threadpool_limits

    from datablame.models.pair import study_tokenizer

    assert study.data is not None
    assert study.models is not None
    assert study.prompts is not None
    judge = Judged.of(study, inputs)
    methods = [judge.told(method) for method in chosen(study.attribute)]
    pool = read_pool(study.data, study.seed, progress)
    check_pool(study, {document.id for document in pool.documents})
    check_kind(pool.documents, study)
    tokenizer = study_tokenizer(study)
    corpus = rankable(pool.documents, tokenizer, study.attribute, progress)
    traced = _traced(study, inputs)
    shortlist: dict[str, list[str]] = {}
    scored: dict[str, dict[str, list[Score]]] = {method.name: {} for method in methods}
    evidence = None
    inexact: dict[str, Any] = {}
    with threadpool_limits(execution.threads):
        if traced.queries:

            def passes(places: Sequence[int], seen: Sequence[int]) -> tuple[Passes, Contrast | None]:
                encoded = [corpus.encoded[place] for place in places]
                journal, timed = Journal(out / "journal.jsonl"), _timer(methods, inputs)
                task = _task(study, methods, traced, tokenizer, out)
                found = run_passes(task, encoded, seen, journal, execution, progress, timed)
                if found.exactness is not None:
                    inexact["exactness"] = found.exactness
                if not any(method.needs == "contrast" for method in methods):
                    return found, None
                texts = [*encoded, *(_encoded(tokenizer, output) for output in (*traced.queries, *traced.safe))]
                states = run_contrast(_contrast_task(study, out), texts, journal, execution, progress, timed)
                n, m = len(encoded), len(traced.queries)
                return found, Contrast(states[:n], states[n : n + m], states[n + m :], traced.safe)

            shortlist, evidence = _evidence(study, inputs, methods, corpus, traced, passes)
            evidence = replace(evidence, candidates={b: set(ids) for b, ids in shortlist.items()}, judge=judge.asks)
            scored = scored_by(methods, evidence, shortlist, study, inputs)
        prompts = (*study.prompts.attribution, *study.prompts.held_out)
        summary = {**pool_summary(pool, corpus, prompts, traced.queries, shortlist), **inexact}
        followed = {
            "traced": [behaviour.id for behaviour in traced.behaviours],
            "dropped": traced.dropped,
            "no_rise": traced.no_rise,
        }
        summary |= {"behaviours": followed, "prefilter": study.prefilter.method}
        results = Results(methods, corpus, summary, traced.queries, shortlist, scored)
        write_results(study, results, evidence, out)
        judge.write(out)


def _traced(study: Study, inputs: Inputs) -> _Traced:
    assert study.prompts is not None
    samples = read_table(inputs.artifact("surface", "samples.parquet"))
    alpha_star = read_json(inputs.artifact("surface", "alpha_star.json"))["alpha_star"]
    risen = rise(read_table(inputs.artifact("surface", "rates.parquet")), alpha_star, study.seed)
    if risen is not None and risen.absent:
        _logger.warning(
            "amplification raises the harmful rate on held-out prompts by %.1f points [%.1f, %.1f]: this is no rise, "
            "so that no output is traced and no document is blamed",
            *(100 * share for share in (risen.difference, risen.low, risen.high)),
        )
        return _Traced([], [], [], [behaviour.id for behaviour in study.behaviours], no_rise=True)
    queries = choose_queries(samples, study.prompts.attribution, alpha_star, study.attribute.queries)
    safe = safe_outputs(samples, study.prompts.attribution, queries, alpha_star, study.attribute.queries)
    shown = {query.behaviour for query in queries}
    behaviours = [behaviour for behaviour in study.behaviours if behaviour.id in shown]
    dropped = [behaviour.id for behaviour in study.behaviours if behaviour.id not in shown]
    if dropped:
        _logger.warning("no harmful output to trace for %s", ", ".join(dropped))
    order = {behaviour.id: place for place, behaviour in enumerate(behaviours)}
    queries.sort(key=lambda query: order[query.behaviour])
    return _Traced(behaviours, queries, safe, dropped, no_rise=False)


def _evidence(
    study: Study,
    inputs: Inputs,
    methods: Sequence[Method],
    corpus: Corpus,
    traced: _Traced,
    passes: Callable[[Sequence[int], Sequence[int]], tuple[Passes, Contrast | None]],
) -> tuple[dict[str, list[str]], Evidence]:
    """The candidates of each behaviour, and what the methods judge the scored documents by.

    `passes` takes the places of the scored documents and, among them, of those whose hidden states are wanted: the
    candidates for their themes, all if a method compares them.
    """
    began = time.perf_counter()
    ids = [document.id for document in corpus.documents]
    texts = [full_text(document) for document in corpus.documents]
    word_scores = bm25.scores(texts, [query_text(query) for query in traced.queries])
    shortlist = candidates(word_scores, traced.queries, traced.behaviours, ids, study.prefilter.candidates)
    if any(method.name == "bm25" for method in methods):
        inputs.timings("attribute/bm25", "index", time.perf_counter() - began)
    some = {doc_id for own in shortlist.values() for doc_id in own}
    places = [place for place, doc_id in enumerate(ids) if study.prefilter.method == "none" or doc_id in some]
    compared = any(method.needs == "activations" for method in methods)
    seen = [row for row, place in enumerate(places) if compared or ids[place] in some]
    check_scored(study, {ids[place] for place in places}, [behaviour.id for behaviour in traced.behaviours])
    found, contrast = passes(places, seen)
    return shortlist, Evidence(
        seed=study.seed,
        documents=[corpus.documents[place] for place in places],
        behaviours=traced.behaviours,
        queries=traced.queries,
        bm25=word_scores[:, places],
        gradients=found.gradients,
        activations=_spread(found.activations, seen, len(places)),
        contrast=contrast,
        encoder=study.attribute.encoder,
    )


def _spread(activations: Activations, rows: Sequence[int], n: int) -> Activations:
    """Hidden states at their documents' rows; zeros where no pass was made, which no method asked for."""
    import numpy as np

    documents = np.zeros((n, activations.documents.shape[1]))
    documents[rows] = activations.documents
    return Activations(documents, activations.queries)


def _task(study: Study, methods: Sequence[Method], traced: _Traced, tokenizer: Any, out: Path) -> Task:
    assert study.models is not None
    checkpoint = study.attribute.checkpoint
    at, other = study.models.after, study.models.before
    if checkpoint == "before":
        at, other = other, at
    return Task(
        model=at,
        model_field=f"models.{checkpoint}",
        settings=study.attribute,
        queries=tuple(
            tuple(_encoded(tokenizer, query) for query in traced.queries if query.behaviour == behaviour.id)
            for behaviour in traced.behaviours
        ),
        gradients=any(method.needs in ("gradients", "changes") for method in methods),
        device=study.models.device,
        items=out / "items",
        other=other if any(method.needs == "changes" for method in methods) else None,
    )


def _contrast_task(study: Study, out: Path) -> ContrastTask:
    assert study.models is not None
    return ContrastTask(study.models.before, study.attribute, study.models.device, out / "items")


def _encoded(tokenizer: Any, output: Query) -> "Encoded":
    from datablame.models.chat import encode_pair

    return encode_pair(tokenizer, output.prompt, output.text, eos=output.finish_reason == "stop")


def _timer(methods: Sequence[Method], inputs: Inputs) -> Callable[[str, str, float], None]:
    """Puts a pass's seconds down to every method that needs it."""

    def timed(kind: str, key: str, seconds: float) -> None:
        for method in methods:
            if kind in _PASSES.get(method.needs, ()):
                inputs.timings(f"attribute/{method.name}", key, seconds)

    return timed
