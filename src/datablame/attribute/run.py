"""The phase attribute: which documents each method holds responsible for each behaviour, and how far methods agree."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.attribute.agreement import agreement
from datablame.attribute.evidence import Activations, Evidence, Query
from datablame.attribute.flags import flagged
from datablame.attribute.passes import Passes, Task, run_passes
from datablame.attribute.quality import ceilings, prefilter_recall, quality
from datablame.attribute.queries import candidates, choose_queries, query_text
from datablame.attribute.rankings import ranked
from datablame.attribute.registry import Method, named
from datablame.attribute.themes import themes
from datablame.config import Behaviour, Study
from datablame.corpus import bm25
from datablame.corpus.documents import Pool, read_pool
from datablame.corpus.duplicates import clusters, full_text
from datablame.errors import RequestError
from datablame.execute import Execution, Progress
from datablame.judge.keywords import normalised
from datablame.records import Document, Score
from datablame.run_folder import Inputs, Journal, read_json, read_jsonl, read_table, write_json, write_jsonl

if TYPE_CHECKING:
    from datablame.models.chat import Encoded

__all__ = ["run"]

_logger = logging.getLogger(__name__)
_TRUNCATED = "nothing of the response is left within attribute.max_tokens"


class _Corpus(NamedTuple):
    """The documents that can be ranked, in the pool's order, with their tokens and duplicate clusters."""

    documents: list[Document]
    encoded: list["Encoded"]
    cluster_of: dict[str, int]
    excluded: dict[str, int]


class _Traced(NamedTuple):
    """What is looked for."""

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
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    assert study.data is not None
    methods = [named(name) for name in study.attribute.methods]
    pool = read_pool(study.data, study.seed, progress)
    corpus = _corpus(study, pool, progress)
    traced = _traced(study, inputs)
    with threadpool_limits(execution.threads):
        shortlist, evidence = _evidence(study, inputs, out, methods, corpus, traced, execution, progress)
        scored = _scored(methods, evidence, shortlist, study, inputs) if evidence is not None else {}
        _write(study, out, methods, pool, corpus, traced, shortlist, evidence, scored)


def _corpus(study: Study, pool: Pool, progress: Progress) -> _Corpus:
    from datablame.models.chat import encode_document
    from datablame.models.pair import load_tokenizer

    assert study.models is not None
    tokenizer = load_tokenizer(study.models.after)
    documents, encoded = [], []
    progress.start("attribute: tokenising the pool", len(pool.documents))
    for document in pool.documents:
        tokens = encode_document(tokenizer, document, study.attribute.max_tokens)
        if tokens is not None:
            documents.append(document)
            encoded.append(tokens)
        progress.advance()
    lost = len(pool.documents) - len(documents)
    if lost:
        _logger.warning("%d of %d documents are excluded: %s", lost, len(pool.documents), _TRUNCATED)
        progress.note(f"{lost} of {len(pool.documents)} documents are excluded: {_TRUNCATED}")
    if not documents:
        raise RequestError(
            f"attribute.max_tokens = {study.attribute.max_tokens} cuts away the response of every document; raise it"
        )
    numbers = clusters(documents, study.attribute.duplicate_threshold)
    cluster_of = {document.id: number for document, number in zip(documents, numbers, strict=True)}
    return _Corpus(documents, encoded, cluster_of, {_TRUNCATED: lost} if lost else {})


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
    out: Path,
    methods: Sequence[Method],
    corpus: _Corpus,
    traced: _Traced,
    execution: Execution,
    progress: Progress,
) -> tuple[dict[str, list[str]], Evidence | None]:
    """The candidates of each behaviour, and what the methods judge the scored documents by."""
    if not traced.queries:
        return {}, None
    began = time.perf_counter()
    ids = [document.id for document in corpus.documents]
    texts = [full_text(document) for document in corpus.documents]
    word_scores = bm25.scores(texts, [query_text(query) for query in traced.queries])
    shortlist = candidates(word_scores, traced.queries, traced.behaviours, ids, study.prefilter.candidates)
    for method in methods:
        if method.name == "bm25":
            inputs.timings("attribute/bm25", "index", time.perf_counter() - began)

    some = {doc_id for own in shortlist.values() for doc_id in own}
    whole = study.prefilter.method == "none"
    places = [place for place, doc_id in enumerate(ids) if whole or doc_id in some]
    wants_all = any(method.needs == "activations" for method in methods)
    seen = [row for row, place in enumerate(places) if wants_all or ids[place] in some]
    passes = _passes(
        study, inputs, out, methods, [corpus.encoded[p] for p in places], seen, traced, execution, progress
    )
    activations = passes.activations
    if len(seen) < len(places):
        activations = _spread(activations, seen, len(places))
    evidence = Evidence(
        seed=study.seed,
        documents=[corpus.documents[place] for place in places],
        behaviours=traced.behaviours,
        queries=traced.queries,
        bm25=word_scores[:, places],
        gradients=passes.gradients,
        activations=activations,
    )
    return shortlist, evidence


def _spread(activations: Activations, rows: Sequence[int], n: int) -> Activations:
    """Hidden states at their documents' rows; zeros where no pass was made, which no method asked for."""
    import numpy as np

    documents = np.zeros((n, activations.documents.shape[1]))
    documents[rows] = activations.documents
    return Activations(documents, activations.queries)


def _passes(
    study: Study,
    inputs: Inputs,
    out: Path,
    methods: Sequence[Method],
    encoded: Sequence["Encoded"],
    seen: Sequence[int],
    traced: _Traced,
    execution: Execution,
    progress: Progress,
) -> Passes:
    from datablame.models.chat import encode_pair
    from datablame.models.pair import load_tokenizer

    assert study.models is not None
    tokenizer = load_tokenizer(study.models.after)
    checkpoint = study.attribute.checkpoint
    task = Task(
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
        items=out / "items",
    )

    def timed(kind: str, key: str, seconds: float) -> None:
        for method in methods:
            if method.needs == kind or (kind == "queries" and method.needs in ("gradients", "activations")):
                inputs.timings(f"attribute/{method.name}", key, seconds)

    return run_passes(task, encoded, seen, Journal(out / "journal.jsonl"), execution, progress, timed)


def _scored(
    methods: Sequence[Method],
    evidence: Evidence,
    shortlist: Mapping[str, Collection[str]],
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
            among = None if _pool_of(method, study) == "whole" else set(shortlist[behaviour.id])
            own = {
                document.id: float(score)
                for document, score in zip(evidence.documents, scores[:, column], strict=True)
                if among is None or document.id in among
            }
            found[method.name][behaviour.id] = ranked(behaviour.id, own)
        inputs.timings(f"attribute/{method.name}", "scores", time.perf_counter() - began)
    return found


def _write(
    study: Study,
    out: Path,
    methods: Sequence[Method],
    pool: Pool,
    corpus: _Corpus,
    traced: _Traced,
    shortlist: Mapping[str, Sequence[str]],
    evidence: Evidence | None,
    scored: Mapping[str, Mapping[str, Sequence[Score]]],
) -> None:
    k, cluster_of = study.attribute.top_k, corpus.cluster_of
    flags = {
        method.name: {
            behaviour: flagged([row.doc_id for row in rows], cluster_of, k)
            for behaviour, rows in scored.get(method.name, {}).items()
        }
        for method in methods
    }
    planted = _planted(study)
    whole = [method.name for method in methods if _pool_of(method, study) == "whole"]
    write_json(out / "methods.json", {method.name: _described(method, study) for method in methods})
    write_json(out / "pool.json", _pool_summary(study, pool, corpus, traced, shortlist))
    write_jsonl(out / "queries.jsonl", [asdict(query) for query in traced.queries])
    write_jsonl(
        out / "candidates.jsonl",
        [{"behaviour": behaviour, "doc_id": doc_id} for behaviour, ids in shortlist.items() for doc_id in ids],
    )
    listed = cluster_of if traced.queries else {}
    write_jsonl(out / "clusters.jsonl", [{"doc_id": doc_id, "cluster": number} for doc_id, number in listed.items()])
    for method in methods:
        rows = [asdict(row) for own in scored.get(method.name, {}).values() for row in own]
        write_jsonl(out / "scores" / f"{method.name}.jsonl", rows)
    write_json(out / "flagged.json", flags)
    write_json(out / "agreement.json", {"k": k, "rows": agreement(scored, cluster_of, k)})
    known = planted or {}
    write_json(
        out / "quality.json",
        {
            "k": k,
            "truth": planted is not None,
            "rows": quality(scored, known, shortlist, cluster_of, whole, k) if planted is not None else [],
            "prefilter_recall": prefilter_recall(known, shortlist, cluster_of) if planted is not None else [],
            "ceilings": ceilings(scored, shortlist, cluster_of, whole, k),
        },
    )
    write_json(out / "themes.json", _themes(evidence, shortlist, flags))
    every = {doc_id for own in flags.values() for ids in own.values() for doc_id in ids}
    write_jsonl(out / "top_documents.jsonl", [_shown(each, planted) for each in corpus.documents if each.id in every])


def _themes(
    evidence: Evidence | None,
    shortlist: Mapping[str, Collection[str]],
    flags: Mapping[str, Mapping[str, Collection[str]]],
) -> dict[str, Any]:
    import numpy as np

    some = {doc_id for own in shortlist.values() for doc_id in own}
    documents = [] if evidence is None else evidence.documents
    places = [place for place, document in enumerate(documents) if document.id in some]
    states = np.zeros((0, 1))
    if evidence is not None and evidence.activations is not None:
        states = evidence.activations.documents[places]
    return themes(
        [documents[place].id for place in places],
        [full_text(documents[place]) for place in places],
        states,
        {method: {doc_id for ids in own.values() for doc_id in ids} for method, own in flags.items()},
    )


def _pool_summary(
    study: Study, pool: Pool, corpus: _Corpus, traced: _Traced, shortlist: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    assert study.prompts is not None
    prompt_of = {normalised(each.text): each.id for each in (*study.prompts.attribution, *study.prompts.held_out)}
    said = {(normalised(query.prompt), normalised(query.text)): query.id for query in traced.queries}
    prompts, queries = [], []
    for document in corpus.documents:
        asked = [normalised(turn.content) for turn in document.prompt if turn.role == "user"]
        prompts += [{"doc_id": document.id, "prompt_id": prompt_of[text]} for text in asked if text in prompt_of]
        answer = normalised(document.response)
        queries += [{"doc_id": document.id, "query_id": said[text, answer]} for text in asked if (text, answer) in said]
    if prompts:
        _logger.warning("%d documents ask exactly what a prompt of the study asks", len(prompts))
    return {
        "documents": len(corpus.documents),
        "excluded": corpus.excluded,
        "skipped_rows": {
            reason: {"count": count, "example": pool.examples.get(reason)} for reason, count in pool.skipped.items()
        },
        "clusters": len(set(corpus.cluster_of.values())),
        "candidates": {behaviour: len(ids) for behaviour, ids in shortlist.items()},
        "behaviours": {"traced": [behaviour.id for behaviour in traced.behaviours], "dropped": traced.dropped},
        "prompt_matches": prompts,
        "query_matches": queries,
    }


def _planted(study: Study) -> dict[str, set[str]] | None:
    """The planted documents by behaviour; None where nobody knows them."""
    if study.truth is None:
        return None
    planted: dict[str, set[str]] = {}
    try:
        for row in read_jsonl(Path(study.truth)):
            planted.setdefault(row["behaviour"], set()).add(row["doc_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"truth = {study.truth} cannot be read as JSONL of doc_id and behaviour ({type(error).__name__}); mend it"
        ) from None
    return planted


def _pool_of(method: Method, study: Study) -> str:
    return "whole" if method.whole_pool and study.prefilter.method == "none" else "candidates"


def _described(method: Method, study: Study) -> dict[str, Any]:
    return {
        "label": method.label,
        "standin": method.standin,
        "control": method.control,
        "pool": _pool_of(method, study),
        "description": method.description,
    }


def _shown(document: Document, planted: Mapping[str, Collection[str]] | None) -> dict[str, Any]:
    turns = document.prompt
    alone = len(turns) == 1 and turns[0].role == "user"
    return {
        "doc_id": document.id,
        "prompt": turns[0].content if alone else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns),
        "response": document.response,
        "source": document.source,
        "planted": None if planted is None else any(document.id in ids for ids in planted.values()),
    }
