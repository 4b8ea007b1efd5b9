"""The phase attribute: which documents each method holds responsible for each behaviour, and how far methods agree."""

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datablame.attribute import compare
from datablame.attribute.loop import collect
from datablame.attribute.methods.bm25 import Words, bm25_scores
from datablame.attribute.methods.gradients import Activations, Gradients
from datablame.attribute.methods.llm_judge import Judgements
from datablame.attribute.queries import candidates, query_text, traced
from datablame.attribute.rankings import Rankings, flags_of, id_order, method_info, pool_of, rankings_of, score_table
from datablame.attribute.registry import Evidence, Inquiry, Method, Votes, chosen, providers_of, union
from datablame.engine.phase import Outputs, Phase, Tables, Work
from datablame.judge.keywords import normalised
from datablame.surface.phase import SURFACE
from datablame.tables import (
    Agreement,
    Attribution,
    Candidate,
    Ceiling,
    Document,
    Flag,
    Match,
    MethodInfo,
    Pool,
    PrefilterRecall,
    Quality,
    Query,
    Score,
    ShownDocument,
    Theme,
)
from datablame.world import World
from datablame.world.duplicates import full_text

_logger = logging.getLogger(__name__)


def run(world: World, tables: Tables, work: Work) -> Outputs:
    """Score the pool or the BM25 candidates by every method, and compare what they say.

    Without a harmful output, or without a rise, there is nothing to trace, and most tables are empty. Raises what
    `collect` raises, and RequestError where a method's evidence cannot be had in this world.
    """
    from threadpoolctl import threadpool_limits

    methods = [method.in_world(world) for method in chosen(world.study.attribute)]
    needs = _needs(world, methods)
    prefilter: Any = world.study.prefilter.method
    for provider in providers_of(needs):
        provider.check(world, work)
    with threadpool_limits(work.execution.threads):
        trace = traced(world, tables)
        began = time.perf_counter()
        words, asked, answered = _read(world, trace.queries)
        for method in methods:
            if Words in method.needs:
                work.timings(f"attribute/{method.name}", "index", time.perf_counter() - began)
        by_id, n = id_order(world.pool.ids), world.study.prefilter.candidates
        shortlist = candidates(words, trace.queries, trace.behaviours, by_id, n)
        inquiry = Inquiry(
            world=world,
            work=work,
            behaviours=trace.behaviours,
            queries=trace.queries,
            harmless=trace.harmless,
            words=words,
            scored=np.arange(len(by_id)) if prefilter == "none" else union(shortlist),
            candidates=shortlist,
            needs=needs,
        )
        by_type = collect(inquiry, methods) if trace.queries else {}
        evidence = Evidence(world.seed, inquiry.ids, inquiry.behaviours, inquiry.queries, by_type)
        k, ids, clusters = world.study.attribute.top_k, world.pool.ids, world.pool.clusters
        rankings: Rankings = rankings_of(inquiry, methods, evidence) if trace.queries else {m.name: {} for m in methods}
        of_whole = [method.name for method in methods if pool_of(world, method) == "whole"]
        flags = flags_of(world, rankings)
        flagged = {method.name: {f.doc_id for f in flags if f.k == k and f.method == method.name} for method in methods}
        themed = union(shortlist)
        texts = [full_text(document) for document in world.pool.documents(themed.tolist())]
        states = evidence[Activations].documents[np.searchsorted(inquiry.scored, themed)] if texts else np.zeros((0, 0))
        by_theme = compare.themes([ids[row] for row in themed.tolist()], texts, states, flagged)
        shown = {doc_id for theme in by_theme.themes for doc_id in theme.examples}.union(*flagged.values())
        known = world.truth is not None
        planted = {behaviour: _rows_of(world, causes) for behaviour, causes in (world.truth or {}).items()}
        gradients: Gradients | None = evidence.by_type.get(Gradients)
        judgements: Judgements | None = evidence.by_type.get(Judgements)
        return {
            Query: [*trace.queries, *trace.harmless],
            Candidate: [Candidate(b, ids[row]) for b, rows in shortlist.items() for row in rows.tolist()],
            Score: score_table(rankings, ids),
            Flag: flags,
            MethodInfo: [method_info(inquiry, method, rankings[method.name]) for method in methods],
            Agreement: compare.agreement(rankings, clusters, k),
            Quality: compare.quality(rankings, planted, shortlist, clusters, of_whole, k) if known else [],
            PrefilterRecall: compare.prefilter_recall(planted, shortlist, clusters) if known else [],
            Ceiling: compare.ceilings(rankings, shortlist, clusters, of_whole, k),
            Theme: by_theme.themes,
            ShownDocument: [
                _shown(world, document) for document in world.pool.documents(_rows_of(world, shown).tolist())
            ],
            Attribution: Attribution(
                k=k,
                traced=tuple(behaviour.id for behaviour in trace.behaviours),
                dropped=tuple(trace.dropped),
                no_rise=trace.no_rise,
                prefilter=prefilter,
                candidates={behaviour: len(rows) for behaviour, rows in shortlist.items()},
                truth=known,
                prompt_matches=tuple(asked),
                query_matches=tuple(answered),
                themed=len(themed),
                silhouette=by_theme.silhouette,
                exactness=None if gradients is None else gradients.exactness,
                judge=None if judgements is None else judgements.answers,
            ),
        }


def planned_documents(
    world: World, methods: Sequence[Method], n_pool: int | None, behaviours: int
) -> dict[type, int | None]:
    """How many documents providers would read for each type of evidence, at most; None where the pool's size counts.

    One pass may make several types. Nothing of the world but its study is asked.
    """
    study, needs = world.study, _needs(world, methods)
    union_at_most = behaviours * study.attribute.queries * study.prefilter.candidates
    some = union_at_most if n_pool is None else min(union_at_most, n_pool)
    scored = some if study.prefilter.method == "bm25" else n_pool
    counted = {kind for provider in providers_of(needs) if provider.per_document for kind in provider.yields}
    return {kind: scored if pool == "whole" else some for kind, pool in needs.items() if kind in counted}


ATTRIBUTE = Phase(
    name="attribute",
    version=1,
    parts=("identity", "pool", "prefilter", "attribute", "attribution judge"),
    after=(SURFACE,),
    run=run,
)


def _needs(world: World, methods: Sequence[Method]) -> dict[type, Pool]:
    """The evidence that is wanted: the candidates' activations for their themes, and what methods need."""
    needs: dict[type, Pool] = {Activations: "candidates"}
    for method in methods:
        for kind in method.needs:
            needs[kind] = "whole" if "whole" in (needs.get(kind), pool_of(world, method)) else "candidates"
    needs.pop(Votes, None)
    return needs


def _read(world: World, queries: Sequence[Query]) -> tuple[NDArray[np.float64], list[Match], list[Match]]:
    """Read every document once: for its BM25 scores, of shape (queries, documents), and for what repeats the study.

    That are the documents whose user says exactly what a prompt of the study says, and those that also answer exactly
    as a traced output: such a document is no finding.
    """
    prompt_of = {normalised(prompt.text): prompt.id for prompt in world.prompts if prompt.split != "harmless"}
    query_of = {(normalised(query.prompt), normalised(query.text)): query.id for query in queries}
    asked: list[Match] = []
    answered: list[Match] = []

    def texts() -> Iterator[str]:
        for document in world.pool.documents():
            turns = {normalised(turn.content) for turn in document.prompt if turn.role == "user"}
            answer = normalised(document.response)
            asked.extend(Match(document.id, prompt_id) for text, prompt_id in prompt_of.items() if text in turns)
            answered.extend(
                Match(document.id, query_id)
                for (text, output), query_id in query_of.items()
                if text in turns and output == answer
            )
            yield full_text(document)

    if queries:
        words = bm25_scores(texts(), [query_text(query) for query in queries])
    else:
        words = np.zeros((0, sum(1 for _ in texts())))
    if asked:
        _logger.warning("%d documents ask exactly what a prompt of the study asks", len(asked))
    return words, asked, answered


def _rows_of(world: World, ids: Collection[str]) -> NDArray[np.int64]:
    rows = world.pool.row_of
    return np.array(sorted(rows[doc_id] for doc_id in ids if doc_id in rows), dtype=np.int64)


def _shown(world: World, document: Document) -> ShownDocument:
    turns = document.prompt
    alone = len(turns) == 1 and turns[0].role == "user"
    return ShownDocument(
        doc_id=document.id,
        prompt=turns[0].content if alone else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns),
        response=document.response,
        rejected=document.rejected,
        source=document.source,
        planted=None if world.truth is None else any(document.id in planted for planted in world.truth.values()),
    )
