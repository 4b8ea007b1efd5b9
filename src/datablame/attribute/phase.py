"""The phase attribute: which documents each method holds responsible for each behaviour, and how far methods agree."""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame import tables as rows
from datablame.attribute import compare
from datablame.attribute.blame import blame, numbered
from datablame.attribute.discovery import SHOWN_DOCUMENTS, discovered
from datablame.attribute.document_tokens import document_tokens
from datablame.attribute.evidence.gradients import Activations, Gradients, MeanGradients, OutputGradients
from datablame.attribute.evidence.judgements import Judgements, joined
from datablame.attribute.evidence.tournament import Comparisons
from datablame.attribute.evidence.words import Counts, ResponseWords, Words, bm25, counted, sought
from datablame.attribute.loop import collect
from datablame.attribute.queries import Amplified, amplified, candidates, labelled_outputs, query_text, traced
from datablame.attribute.rankings import flags_of, id_order, pool_of, rankings_of, score_parts
from datablame.attribute.registry import Inquiry, Method, Passes, Votes, chosen, costed, providers_of, union
from datablame.engine.execute import run_items
from datablame.engine.phase import Outputs, Phase, Tables, Work
from datablame.engine.usage import measured
from datablame.errors import RequestError
from datablame.surface.phase import SURFACE
from datablame.words import normalised
from datablame.world import World
from datablame.world.duplicates import full_text

Matches = list[rows.Match]

_logger = logging.getLogger(__name__)
_READ_AT_ONCE = 4096
"""Documents of one item."""


def run(world: World, tables: Tables, work: Work) -> Outputs:
    """Score the pool or the BM25 candidates by every method, and compare what they say.

    Without a harmful output, or without a rise, there is nothing to trace, and most tables are empty. Raises what
    `collect` raises, and RequestError where a method's evidence cannot be had in this world.
    """
    from threadpoolctl import threadpool_limits

    methods, needs = check_evidence(world, work)
    with threadpool_limits(work.execution.threads):
        outputs = traced(world, tables)
        queries = [output for output in outputs if output.harmful]
        read = partial(read_pool, world, work, queries, responses=ResponseWords in needs)
        (words, prompt_matches, query_matches), taken = measured(read)
        for name in costed(methods, words):
            work.timings(f"attribute/{name}", "index", *taken)
        prefilter: Any = world.study.prefilter
        shortlist = candidates(words[Words], queries, id_order(world.pool.ids), prefilter.candidates)
        unmatched = tuple(query.id for query, row in zip(queries, words[Words], strict=True) if not row.any())
        if unmatched:
            message = "%d of %d traced outputs have no word in common with any document of the pool: %s"
            _logger.warning(message, len(unmatched), len(queries), ", ".join(unmatched))
        if prefilter.method == "bm25":
            shortlist = {behaviour: indices for behaviour, indices in shortlist.items() if len(indices)}
            kept = [query.behaviour in shortlist for query in queries]
            words = {kind: scores[kept] for kind, scores in words.items()}
            queries = [query for query in queries if query.behaviour in shortlist]
        behaviours = [behaviour for behaviour in world.behaviours if behaviour.id in shortlist]
        harmless = [output for output in outputs if not output.harmful and output.behaviour in shortlist]
        scored = np.arange(len(world.pool)) if prefilter.method == "none" else union(shortlist)
        unnamed = amplified(world, tables) if OutputGradients in needs else Amplified([], [], 0)
        if not unnamed.outputs:
            needs.pop(OutputGradients, None)
        if not queries:
            needs = {kind: pool for kind, pool in needs.items() if kind is OutputGradients}
        labelled = labelled_outputs(world, tables) if queries else {}
        about = (behaviours, queries, harmless, words, scored, shortlist, needs, labelled, unnamed.outputs)
        inquiry = Inquiry(world, work, *about)
        evidence = collect(inquiry, methods) if needs else {}
        rankings, infos = rankings_of(inquiry, methods, evidence)
        ids, clusters, k = world.pool.ids, world.pool.clusters, world.study.attribute.top_k
        flags = flags_of(world, rankings)
        flagged = {method.name: {f.doc_id for f in flags if f.k == k and f.method == method.name} for method in methods}
        themed = union(shortlist)
        texts = [full_text(document) for document in world.pool.documents(themed.tolist())]
        states = evidence[Activations].documents[np.searchsorted(inquiry.scored, themed)] if texts else np.zeros((0, 0))
        by_theme = compare.themes([ids[row] for row in themed.tolist()], texts, states, flagged)
        sources, of_source = numbered(world.pool.column("source"))
        of_theme = np.full(len(ids), -1)
        of_theme[themed] = by_theme.labels
        themes = [str(number) for number, _ in enumerate(by_theme.themes, 1)]
        found = None
        if unnamed.outputs or unnamed.weak:
            found = discovered(world, unnamed, evidence.get(OutputGradients))
        groups = found.groups if found else []
        shown = {doc_id for theme in by_theme.themes for doc_id in theme.examples}
        shown = shown.union(*flagged.values(), *(group.documents[:SHOWN_DOCUMENTS] for group in groups))
        shown_rows = _rows_of(world, shown)
        of_whole = [method.name for method in methods if pool_of(world, method) == "whole"]
        known, rise = world.truth is not None, tables.of(rows.AlphaStar).rise
        planted = {behaviour: _rows_of(world, causes) for behaviour, causes in (world.truth or {}).items()}
        made: dict[type, Any] = {
            rows.Query: outputs,
            rows.Candidate: [rows.Candidate(b, ids[i]) for b, indices in shortlist.items() for i in indices.tolist()],
            rows.Score: score_parts(rankings, ids),
            rows.Flag: flags,
            rows.MethodInfo: infos,
            rows.Agreement: compare.agreement(rankings, clusters, k),
            rows.Quality: compare.quality(rankings, planted, shortlist, clusters, of_whole, k) if known else [],
            rows.PrefilterRecall: compare.prefilter_recall(planted, shortlist, clusters) if known else [],
            rows.Ceiling: compare.ceilings(rankings, shortlist, clusters, of_whole, k),
            rows.Theme: by_theme.themes,
            rows.Blame: [
                *blame("source", sources, of_source, rankings, clusters, k),
                *blame("theme", themes, of_theme, rankings, clusters, k),
            ],
            rows.OutputGroup: groups,
            rows.ShownDocument: [_shown(world, each) for each in world.pool.documents(shown_rows.tolist())],
            rows.Attribution: rows.Attribution(
                k=k,
                traced=tuple(shortlist),
                dropped=tuple(behaviour.id for behaviour in world.behaviours if behaviour.id not in shortlist),
                no_rise=rise is not None and rise.absent,
                prefilter=prefilter.method,
                candidates={behaviour: len(indices) for behaviour, indices in shortlist.items()},
                truth=known,
                prompt_matches=tuple(prompt_matches),
                query_matches=tuple(query_matches),
                unmatched=unmatched,
                themed=len(themed),
                silhouette=by_theme.silhouette,
                exactness=evidence[Gradients].exactness if Gradients in evidence else None,
                judge=joined([evidence[kind].answers for kind in (Judgements, Comparisons) if kind in evidence]),
                sources=len(sources),
                discovery=found and found.about,
            ),
        }
        if world.study.report.tokens:
            compared = bool(queries) and Gradients in evidence
            made[rows.DocumentTokens] = document_tokens(inquiry, shown_rows) if compared else []
        return made


def check_evidence(world: World, work: Work) -> tuple[list[Method], dict[type, rows.Pool]]:
    """The study's methods as they run in this world, and the evidence that they need, which can be had.

    Raises RequestError where it cannot; no model and no document is read to find out.
    """
    if world.study.attribute.discover and world.study.prefilter.method == "bm25":
        raise RequestError(
            "attribute.discover = true groups outputs by the whole pool; set prefilter.method to none, or leave it out"
        )
    methods = [method.in_world(world) for method in chosen(world.study.attribute)]
    needs = wanted(world, methods)
    for provider in providers_of(needs):
        provider.check(world, work)
    return methods, needs


class PlannedReading(NamedTuple):
    """What a provider would read, at most."""

    documents: int | None
    """None where the pool's size counts and is not known."""
    passes: Passes
    """Over each of them."""


def planned_reading(
    world: World, methods: Sequence[Method], n_pool: int | None, behaviours: int
) -> dict[str, PlannedReading]:
    """By provider, of those that read documents; nothing of the world but its study is asked."""
    study, needs = world.study, wanted(world, methods)
    union_at_most = behaviours * study.attribute.queries * study.prefilter.candidates
    some = union_at_most if n_pool is None else min(union_at_most, n_pool)
    scored = some if study.prefilter.method == "bm25" else n_pool
    planned = {}
    for provider in providers_of(needs):
        kinds = [kind for kind in provider.yields if kind in needs]
        documents = scored if "whole" in {needs[kind] for kind in kinds} else some
        if provider.per_document:
            planned[provider.name] = PlannedReading(documents, provider.passes(world, kinds))
    return planned


ATTRIBUTE = Phase(
    "attribute",
    5,
    ("identity", "pool", "prefilter", "attribute", "attribution judge", "tokens"),
    after=(SURFACE,),
    run=run,
)


def wanted(world: World, methods: Sequence[Method]) -> dict[type, rows.Pool]:
    """The evidence that is wanted: the candidates' activations for their themes, what methods need, and discovery."""
    needs: dict[type, rows.Pool] = {Activations: "candidates"}
    for method in methods:
        for kind in method.needs:
            needs[kind] = "whole" if "whole" in (needs.get(kind), pool_of(world, method)) else "candidates"
    discover, whole = world.study.attribute.discover, "whole" in (needs.get(Gradients), needs.get(MeanGradients))
    if whole if discover is None else discover:
        needs[OutputGradients] = "whole"
    needs.pop(Votes, None)
    return needs


class _Reader(NamedTuple):
    """What is sought in the pool."""

    world: World
    numbers: Mapping[type, Mapping[str, int]]
    """The words of the queries."""
    prompt_of: Mapping[str, str]
    query_of: Mapping[tuple[str, str], str]


class _Read(NamedTuple):
    """What some documents hold of it."""

    counts: dict[type, Counts]
    prompt_matches: Matches
    query_matches: Matches


def read_pool(
    world: World, work: Work, queries: Sequence[rows.Query], *, responses: bool
) -> tuple[dict[type, NDArray[np.float64]], Matches, Matches]:
    """Read every document: for its BM25 scores, of shape (queries, documents), and for what repeats the study.

    With `responses` also for the scores of responses alone. What repeats the study are documents whose user says
    exactly what a prompt of it says, and those that also answer exactly as a traced output: they are no finding.
    """
    asked: dict[type, list[str]] = {Words: [query_text(query) for query in queries]}
    if responses:
        asked[ResponseWords] = [query.text for query in queries]
    reader = _Reader(
        world,
        {kind: sought(texts) for kind, texts in asked.items()},
        {normalised(prompt.text): prompt.id for prompt in world.prompts if prompt.split != "harmless"},
        {(normalised(query.prompt), normalised(query.text)): query.id for query in queries},
    )
    starts = range(0, len(world.pool), _READ_AT_ONCE)
    items = {str(start): range(start, min(start + _READ_AT_ONCE, len(world.pool))) for start in starts}
    found: dict[str, _Read] = {}
    run_items(
        partial(_itself, reader),
        _read_some,
        items,
        execution=work.execution.on("cpu"),
        done=found.__setitem__,
        progress=work.progress,
        description="attribute: reading the pool",
        units=len,
    )
    parts = [found[key] for key in items]
    scores = {
        kind: bm25([part.counts[kind] for part in parts], reader.numbers[kind], texts) for kind, texts in asked.items()
    }
    prompt_matches = [match for part in parts for match in part.prompt_matches]
    query_matches = [match for part in parts for match in part.query_matches]
    if prompt_matches:
        _logger.warning("%d documents ask exactly what a prompt of the study asks", len(prompt_matches))
    return scores, prompt_matches, query_matches


def _itself(reader: _Reader) -> _Reader:
    return reader


def _read_some(reader: _Reader, some: range) -> _Read:
    prompt_matches, query_matches, texts = Matches(), Matches(), dict[type, list[str]]()
    for document in reader.world.pool.documents(some):
        turns = {normalised(turn.content) for turn in document.prompt if turn.role == "user"}
        answer = normalised(document.response)
        prompt_matches += (rows.Match(document.id, of) for text, of in reader.prompt_of.items() if text in turns)
        repeated = (of for (prompt, output), of in reader.query_of.items() if prompt in turns and output == answer)
        query_matches += (rows.Match(document.id, of) for of in repeated)
        texts.setdefault(Words, []).append(full_text(document))
        texts.setdefault(ResponseWords, []).append(document.response)
    counts = {kind: counted(texts[kind], numbers) for kind, numbers in reader.numbers.items()}
    return _Read(counts, prompt_matches, query_matches)


def _rows_of(world: World, ids: Collection[str]) -> NDArray[np.int64]:
    row_of = world.pool.row_of
    return np.array(sorted(row_of[doc_id] for doc_id in ids if doc_id in row_of), dtype=np.int64)


def _shown(world: World, document: rows.Document) -> rows.ShownDocument:
    turns, truth = document.prompt, world.truth
    alone = len(turns) == 1 and turns[0].role == "user"
    prompt = turns[0].content if alone else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
    planted = None if truth is None else any(document.id in planted for planted in truth.values())
    return rows.ShownDocument(document.id, prompt, document.response, document.rejected, document.source, planted)
