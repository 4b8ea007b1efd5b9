"""The phase attribute: which documents each method holds responsible for each behaviour, and how far methods agree."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from datablame.attribute.evidence import Activations, Evidence, Query
from datablame.attribute.judged import Judged
from datablame.attribute.passes import Task, run_passes
from datablame.attribute.pool import Corpus, pool_summary, rankable
from datablame.attribute.queries import candidates, choose_queries, query_text
from datablame.attribute.rankings import ranked
from datablame.attribute.registry import Method, named
from datablame.attribute.results import Results, pool_of, write_results
from datablame.config import Behaviour, Study
from datablame.corpus import bm25
from datablame.corpus.documents import read_pool
from datablame.corpus.duplicates import full_text
from datablame.execute import Execution, Progress
from datablame.records import Score
from datablame.run_folder import Inputs, Journal, read_json, read_table

__all__ = ["run"]

_logger = logging.getLogger(__name__)


class _Traced(NamedTuple):
    """What is looked for, behaviours in the study's order."""

    behaviours: list[Behaviour]
    queries: list[Query]
    dropped: list[str]


def run(study: Study, inputs: Inputs, out: Path, execution: Execution, progress: Progress) -> None:
    """Score the pool or the BM25 candidates by every method: writes queries, candidates, scores and comparisons.

    Without a harmful output there is nothing to trace, and the artifacts are empty.

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
    methods = [judge.told(named(name)) for name in study.attribute.methods]
    pool = read_pool(study.data, study.seed, progress)
    tokenizer = study_tokenizer(study)
    corpus = rankable(pool.documents, tokenizer, study.attribute, progress)
    traced = _traced(study, inputs)
    shortlist: dict[str, list[str]] = {}
    scored: dict[str, dict[str, list[Score]]] = {method.name: {} for method in methods}
    evidence = None
    with threadpool_limits(execution.threads):
        if traced.queries:

            def passes(places: Sequence[int], seen: Sequence[int]) -> tuple[Any, Activations]:
                task = _task(study, methods, traced, tokenizer, out)
                encoded = [corpus.encoded[place] for place in places]
                timed = _timer(methods, inputs)
                return run_passes(task, encoded, seen, Journal(out / "journal.jsonl"), execution, progress, timed)

            shortlist, evidence = _evidence(study, inputs, methods, corpus, traced, passes)
            evidence = replace(evidence, candidates={b: set(ids) for b, ids in shortlist.items()}, judge=judge.asks)
            scored = _scored(methods, evidence, shortlist, study, inputs)
        prompts = (*study.prompts.attribution, *study.prompts.held_out)
        summary = pool_summary(pool, corpus, prompts, traced.queries, shortlist)
        followed = {"traced": [behaviour.id for behaviour in traced.behaviours], "dropped": traced.dropped}
        results = Results(methods, corpus, {**summary, "behaviours": followed}, traced.queries, shortlist, scored)
        write_results(study, results, evidence, out)
        judge.write(out)


def _traced(study: Study, inputs: Inputs) -> _Traced:
    assert study.prompts is not None
    samples = read_table(inputs.artifact("surface", "samples.parquet"))
    alpha_star = read_json(inputs.artifact("surface", "alpha_star.json"))["alpha_star"]
    queries = choose_queries(samples, study.prompts.attribution, alpha_star, study.attribute.queries)
    shown = {query.behaviour for query in queries}
    behaviours = [behaviour for behaviour in study.behaviours if behaviour.id in shown]
    dropped = [behaviour.id for behaviour in study.behaviours if behaviour.id not in shown]
    if dropped:
        _logger.warning("no harmful output to trace for %s", ", ".join(dropped))
    order = {behaviour.id: place for place, behaviour in enumerate(behaviours)}
    return _Traced(behaviours, sorted(queries, key=lambda query: order[query.behaviour]), dropped)


def _evidence(
    study: Study,
    inputs: Inputs,
    methods: Sequence[Method],
    corpus: Corpus,
    traced: _Traced,
    passes: Callable[[Sequence[int], Sequence[int]], tuple[Any, Activations]],
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
    gradients, activations = passes(places, seen)
    return shortlist, Evidence(
        seed=study.seed,
        documents=[corpus.documents[place] for place in places],
        behaviours=traced.behaviours,
        queries=traced.queries,
        bm25=word_scores[:, places],
        gradients=gradients,
        activations=_spread(activations, seen, len(places)),
        encoder=study.attribute.encoder,
    )


def _spread(activations: Activations, rows: Sequence[int], n: int) -> Activations:
    """Hidden states at their documents' rows; zeros where no pass was made, which no method asked for."""
    import numpy as np

    documents = np.zeros((n, activations.documents.shape[1]))
    documents[rows] = activations.documents
    return Activations(documents, activations.queries)


def _task(study: Study, methods: Sequence[Method], traced: _Traced, tokenizer: Any, out: Path) -> Task:
    from datablame.models.chat import encode_pair

    assert study.models is not None
    checkpoint = study.attribute.checkpoint
    return Task(
        model=study.models.after if checkpoint == "after" else study.models.before,
        model_field=f"models.{checkpoint}",
        settings=study.attribute,
        queries=tuple(
            tuple(
                encode_pair(tokenizer, query.prompt, query.text, eos=query.finish_reason == "stop")
                for query in traced.queries
                if query.behaviour == behaviour.id
            )
            for behaviour in traced.behaviours
        ),
        gradients=any(method.needs == "gradients" for method in methods),
        device=study.models.device,
        items=out / "items",
    )


def _timer(methods: Sequence[Method], inputs: Inputs) -> Callable[[str, str, float], None]:
    """Puts a pass's seconds down to every method that needs it."""

    def timed(kind: str, key: str, seconds: float) -> None:
        for method in methods:
            if method.needs == kind or (kind == "queries" and method.needs in ("gradients", "activations")):
                inputs.timings(f"attribute/{method.name}", key, seconds)

    return timed


def _scored(
    methods: Sequence[Method],
    evidence: Evidence,
    shortlist: Mapping[str, Sequence[str]],
    study: Study,
    inputs: Inputs,
) -> dict[str, dict[str, list[Score]]]:
    """Ranked scores by method and behaviour, of the documents that the method's pool has for it."""
    found: dict[str, dict[str, list[Score]]] = {}
    for method in methods:
        began = time.perf_counter()
        scores = method.score(evidence)
        found[method.name] = {}
        for column, behaviour in enumerate(evidence.behaviours):
            among = None if pool_of(method, study) == "whole" else set(shortlist[behaviour.id])
            own = {
                document.id: float(score)
                for document, score in zip(evidence.documents, scores[:, column], strict=True)
                if among is None or document.id in among
            }
            found[method.name][behaviour.id] = ranked(behaviour.id, own)
        inputs.timings(f"attribute/{method.name}", "scores", time.perf_counter() - began)
    return found
