"""What the page's explorers look through: outputs, their tokens, and documents, in columns and compressed."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from datablame.report import redaction
from datablame.report.results import Results
from datablame.report.wording import percent
from datablame.tables import (
    LABELS,
    ArmSample,
    DocumentTokens,
    Prompt,
    SampleTokens,
    Score,
    ShownDocument,
    SurfaceSample,
)

if TYPE_CHECKING:
    from datablame.engine.phase import Tables
    from datablame.world.world import World

MOST_SAMPLES = 25_000
"""Outputs of the surface phase on the page, and of the arms; of more, the lowest numbers of each cell are there."""
_HALF = np.dtype("<f2")
S = TypeVar("S", SurfaceSample, ArmSample)
TOP = 10
"""Documents of each method and behaviour that can be looked at."""


class Explorer(NamedTuple):
    """What the page holds, and what it leaves out."""

    content: dict[str, Any]
    left_out: int
    """Outputs that stand in artifacts/surface/samples.parquet and artifacts/patch/samples.parquet only."""


def explorer(results: Results, world: "World", tables: "Tables") -> Explorer:
    """Outputs of the surface phase and of the arms, and the first documents of every method."""
    of_arms = tables.rows(ArmSample)
    of_after, shown = _thinned(results.samples), _thinned(of_arms)
    if results.study.report.redact:
        shown = [redaction.shown(sample) for sample in shown]
    prompts = {prompt.id: number for number, prompt in enumerate(results.prompts)}
    groups = [{"arm": "", "name": "surface phase: after"}]
    number = {("", "", 0, 0): 0}
    for sample in shown:
        key = (sample.arm, sample.protocol, sample.k, sample.seed)
        if key not in number:
            number[key] = len(groups)
            name = results.label(sample.arm)
            name += f", {sample.protocol}" if sample.protocol != "none" else ""
            name += (f", K = {sample.k}" if sample.k else "") + f", seed {sample.seed}"
            groups.append({"arm": sample.arm, "name": name})
    samples: list[Any] = [*of_after, *shown]
    of_group = [0] * len(of_after) + [number[s.arm, s.protocol, s.k, s.seed] for s in shown]
    content = {
        "labels": list(LABELS),
        "behaviours": results.titles,
        "prompts": [_prompt(prompt) for prompt in results.prompts],
        "groups": groups,
        "samples": {
            "prompt": [prompts[sample.prompt_id] for sample in samples],
            "alpha": [sample.alpha for sample in samples],
            "index": [sample.index for sample in samples],
            "label": [LABELS.index(sample.label) for sample in samples],
            "group": of_group,
            "text": [sample.text for sample in samples],
            "after": [_rounded(getattr(sample, "log_p_after", None)) for sample in samples],
            "before": [_rounded(getattr(sample, "log_p_before", None)) for sample in samples],
        },
        "tokens": _tokens(of_after, tables, redact=results.study.report.redact),
        **_documents(results, world, tables),
    }
    return Explorer(content, len(results.samples) + len(of_arms) - len(samples))


def encoded(content: Mapping[str, Any]) -> str:
    """The content as compressed JSON in base64, in which no markup can stand."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _thinned(samples: Sequence[S]) -> list[S]:
    """All of them, or of each cell those of the lowest numbers, as many as there is room for."""
    if len(samples) <= MOST_SAMPLES:
        return list(samples)
    counts = np.bincount([sample.index for sample in samples])
    least = int(np.searchsorted(np.cumsum(counts), MOST_SAMPLES, side="right"))
    return [sample for sample in samples if sample.index < max(1, least)]


def _tokens(samples: Sequence[SurfaceSample], tables: "Tables", *, redact: bool) -> dict[str, Any] | None:
    """The tokens of the outputs, in their order: numbers of a vocabulary, and three numbers each in 16 bits.

    A harmful output that is hidden has none, for its tokens are its text; nor has any where the study keeps none.
    """
    kept = {(row.prompt_id, row.alpha, row.index): row for row in tables.rows(SampleTokens)}
    if not kept:
        return None
    numbers: dict[str, int] = {}
    ids: list[int] = []
    starts, values = [0], [np.empty((0, 3), _HALF)]
    for sample in samples:
        row = None if redact and sample.label == "harmful" else kept.get((sample.prompt_id, sample.alpha, sample.index))
        if row is not None:
            ids += [numbers.setdefault(piece, len(numbers)) for piece in row.pieces]
            values.append(np.array([row.log_p_after, row.log_p_before, row.log_q], _HALF).T)
        starts.append(len(ids))
    packed = base64.b64encode(np.concatenate(values).tobytes()).decode()
    return {"vocabulary": list(numbers), "ids": ids, "start": starts, "values": packed}


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {"id": prompt.id, "behaviour": prompt.behaviour, "split": prompt.split, "text": prompt.text}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _documents(results: Results, world: "World", tables: "Tables") -> dict[str, Any]:
    """The first documents of each method for each behaviour, with their scores by every method."""
    first = {score.doc_id for score in tables.rows(Score, rank=set(range(1, TOP + 1)))}
    scores = tables.rows(Score, doc_id=first) if first else []
    ids = sorted(first)
    number = {doc_id: index for index, doc_id in enumerate(ids)}
    ranked: dict[str, dict[str, list[tuple[int, float, int]]]] = {}
    for score in scores:
        of_behaviour = ranked.setdefault(score.behaviour, {}).setdefault(score.method, [])
        of_behaviour.append((number[score.doc_id], float(f"{score.score:.5g}"), score.rank))
    copies = _copies(world, ids)
    return {
        "methods": [
            {"name": name, "label": info.label, "control": info.control} for name, info in results.methods.items()
        ],
        "documents": [_document(results, doc_id, copies.get(doc_id, ())) for doc_id in ids],
        "document_tokens": {} if results.study.report.redact else _carried(tables, first),
        "scores": {b: {m: sorted(rows, key=lambda row: row[2]) for m, rows in of.items()} for b, of in ranked.items()},
        "queries": [
            {
                **{"id": query.id, "behaviour": query.behaviour, "prompt": query.prompt, "alpha": query.alpha},
                **{"text": query.text, "index": query.index},
            }
            for query in results.queries
        ],
        "arms": {test.arm: f"{percent(test.rate)} harmful" for test in results.headline},
        "top": TOP,
    }


def _carried(tables: "Tables", ids: Set[str]) -> dict[str, dict[str, Any]]:
    """By behaviour and document, the tokens of each answer with their shares of the gradient similarity."""
    found: dict[str, dict[str, Any]] = {}
    for row in tables.rows(DocumentTokens, doc_id=set(ids)):
        answers = ((row.pieces, row.shares), (row.rejected_pieces, row.rejected_shares))
        found.setdefault(row.behaviour, {})[row.doc_id] = {
            "sum": sum((*row.shares, *row.rejected_shares)),
            "answers": [
                {"pieces": pieces, "shares": [float(f"{share:.3g}") for share in shares]}
                for pieces, shares in answers
                if pieces
            ],
        }
    return found


def _document(results: Results, doc_id: str, copies: Sequence[str]) -> dict[str, Any]:
    held = results.documents.get(doc_id, ShownDocument(doc_id, "", "", "", "", None))
    headline, k = results.study.patch.headline, results.patching.k
    removed = dict.fromkeys(
        row.arm
        for row in results.interventions
        if row.protocol == headline and row.k in (0, k) and doc_id in row.removed
    )
    return {
        **{"id": doc_id, "source": held.source, "prompt": held.prompt, "response": held.response},
        **{"rejected": held.rejected, "planted": held.planted, "copies": list(copies)},
        "removed": [f"{results.label(arm)}" for arm in removed],
        "arms": list(removed),
    }


def _copies(world: "World", ids: Sequence[str]) -> dict[str, list[str]]:
    """The other members of each document's duplicate cluster."""
    if not ids or not world.pool.path.exists():
        return {}
    row_of, clusters = world.pool.row_of, world.pool.clusters
    known = {doc_id: int(clusters[row_of[doc_id]]) for doc_id in ids if doc_id in row_of}
    members: dict[int, list[str]] = {cluster: [] for cluster in known.values()}
    for row in np.flatnonzero(np.isin(clusters, list(members))).tolist():
        members[int(clusters[row])].append(world.pool.ids[row])
    return {doc_id: [other for other in members[cluster] if other != doc_id] for doc_id, cluster in known.items()}
