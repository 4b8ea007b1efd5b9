"""The artifacts of attribution: scores, flagged documents, agreement, quality, themes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datablame.attribute.agreement import agreement
from datablame.attribute.evidence import Evidence, Query
from datablame.attribute.flags import flagged
from datablame.attribute.pool import Corpus
from datablame.attribute.quality import ceilings, prefilter_recall, quality
from datablame.attribute.registry import Method
from datablame.attribute.themes import themes
from datablame.engine.run_folder import read_jsonl, write_json, write_jsonl
from datablame.errors import RequestError
from datablame.study.schema import Study
from datablame.tables import Document, Score
from datablame.world.duplicates import full_text


class Results(NamedTuple):
    """What attribution found; `scored` has ranked scores by method and behaviour, none where nothing was traced."""

    methods: Sequence[Method]
    corpus: Corpus
    summary: Mapping[str, Any]
    queries: Sequence[Query]
    shortlist: Mapping[str, Sequence[str]]
    """The BM25 candidates by behaviour."""
    scored: Mapping[str, Mapping[str, Sequence[Score]]]


def pool_of(method: Method, study: Study) -> Literal["whole", "candidates"]:
    """Which documents the method ranks in this study."""
    return "whole" if method.whole_pool and study.prefilter.method == "none" else "candidates"


def write_results(study: Study, results: Results, evidence: Evidence | None, out: Path) -> None:
    """Write every artifact of the phase; the clusters are empty where nothing was traced.

    Raises:
        RequestError: the truth cannot be read.
    """
    methods, corpus, summary, queries, shortlist, scored = results
    k, cluster_of = study.attribute.top_k, corpus.cluster_of
    planted = _planted(study)
    flags = {
        name: {behaviour: flagged([row.doc_id for row in rows], cluster_of, k) for behaviour, rows in own.items()}
        for name, own in scored.items()
    }
    write_json(out / "methods.json", {method.name: _described(method, study, results) for method in methods})
    write_json(out / "pool.json", summary)
    write_jsonl(out / "queries.jsonl", [asdict(query) for query in queries])
    if evidence is not None and evidence.contrast is not None:
        write_jsonl(out / "safe_outputs.jsonl", [asdict(output) for output in evidence.contrast.outputs])
    write_jsonl(
        out / "candidates.jsonl",
        [{"behaviour": behaviour, "doc_id": doc_id} for behaviour, ids in shortlist.items() for doc_id in ids],
    )
    listed = cluster_of if queries else {}
    write_jsonl(out / "clusters.jsonl", [{"doc_id": doc_id, "cluster": number} for doc_id, number in listed.items()])
    for name, own in scored.items():
        write_jsonl(out / "scores" / f"{name}.jsonl", [asdict(row) for rows in own.values() for row in rows])
    write_json(out / "flagged.json", flags)
    write_json(out / "agreement.json", {"k": k, "rows": agreement(scored, cluster_of, k)})
    write_json(out / "quality.json", _quality(study, results, planted))
    found = _themes(evidence, shortlist, flags)
    write_json(out / "themes.json", found)
    shown = {doc_id for own in flags.values() for ids in own.values() for doc_id in ids}
    shown |= {doc_id for theme in found["themes"] for doc_id in theme["examples"]}
    write_jsonl(out / "top_documents.jsonl", [_shown(each, planted) for each in corpus.documents if each.id in shown])


def _quality(study: Study, results: Results, planted: Mapping[str, Collection[str]] | None) -> dict[str, Any]:
    k, shortlist, cluster_of = study.attribute.top_k, results.shortlist, results.corpus.cluster_of
    whole = [method.name for method in results.methods if pool_of(method, study) == "whole"]
    known = planted is not None
    return {
        "k": k,
        "truth": known,
        "rows": quality(results.scored, planted or {}, shortlist, cluster_of, whole, k) if known else [],
        "prefilter_recall": prefilter_recall(planted or {}, shortlist, cluster_of) if known else [],
        "ceilings": ceilings(results.scored, shortlist, cluster_of, whole, k),
    }


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


def _described(method: Method, study: Study, results: Results) -> dict[str, Any]:
    """What a method is; `unranked` is there only where it gave some documents no score."""
    pool = pool_of(method, study)
    every = len(results.corpus.documents)
    unranked = {
        behaviour: (every if pool == "whole" else len(results.shortlist[behaviour])) - len(rows)
        for behaviour, rows in results.scored[method.name].items()
    }
    return {
        "label": method.label,
        "standin": method.standin,
        "control": method.control,
        "pool": pool,
        "description": method.description,
        **({"unranked": {behaviour: n for behaviour, n in unranked.items() if n}} if any(unranked.values()) else {}),
    }


def _shown(document: Document, planted: Mapping[str, Collection[str]] | None) -> dict[str, Any]:
    turns = document.prompt
    alone = len(turns) == 1 and turns[0].role == "user"
    return {
        "doc_id": document.id,
        "prompt": turns[0].content if alone else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns),
        "response": document.response,
        **({"rejected": document.rejected} if document.rejected else {}),
        "source": document.source,
        "planted": None if planted is None else any(document.id in ids for ids in planted.values()),
    }
