"""What a run folder says, under names that outlive the files: the only code here that knows how a run is laid out.

A table is `{columns, key, fixed, rows}`: rows are lists in the order of `columns`, sorted by the columns of `key`,
which tell one row from another. What stands in the columns of `fixed` follows from the study alone, on every machine.
Everything else is plain data. Sentences stand in `sentences`; where they stood, `true` or their number tells of them.

Left out: what differs between equal runs (seconds), the figures, and what is about to go (the logit path of
`unamplified`, the logistic mixed model of the tests).
"""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from datablame.tables import (
    Agreement,
    AlphaStar,
    Arm,
    ArmCheck,
    ArmRate,
    ArmSample,
    ArmTest,
    Attribution,
    Candidate,
    Ceiling,
    Check,
    Document,
    Exposure,
    Flag,
    MethodInfo,
    Patching,
    PoolSummary,
    PrefilterRecall,
    Quality,
    Query,
    Rate,
    Scan,
    ScannedPrompt,
    ScanSample,
    Score,
    ShownDocument,
    SurfaceSample,
    Theme,
    Training,
    Unamplified,
    object_of,
    path_of,
    rows_of,
)
from datablame.world.pool import Pool

__all__ = ["after_weights", "outputs"]

T = TypeVar("T")

DIGITS = 6
TOP = 20
_RENAMED: Mapping[str, str] = {"after": "untrained"}
"""Names of today by the names that the golden files hold, for keys and for values that are such a name."""
_WITHHELD = ("seconds", "mixed", "path")
_TEXTS = ("why", "why_no_p", "why_not", "withheld", "reason", "reasons", "description", "rule")
_LABELS = ("harmful", "refused", "harmless", "incoherent", "unscored")
_CELL = ("prompt_id", "behaviour", "split", "alpha")
_ARM = ("arm", "protocol", "k", "seed")


def outputs(run_folder: Path) -> dict[str, Any]:
    """Every result of a finished run, as JSON holds it."""
    notes: set[str] = set()
    found = {
        **_scan(run_folder, notes),
        **_surface(run_folder, notes),
        **_attribute(run_folder, notes),
        **_patch(run_folder, notes),
    }
    with (run_folder / "patching_comparison.csv").open(newline="") as file:
        table = _comparison([_numbers(row) for row in csv.DictReader(file)])
    found |= _once(found, {"patching_comparison.csv": table})
    final, sentences = _final(_json(run_folder / "final_results.json"), notes)
    # The golden files know nothing of the rows of each file, of text in no document and of the largest cluster.
    final["pool"] = {name: final["pool"][name] for name in found["attribute.pool"]}
    phase2 = _json(run_folder / "phase2_results.json")
    shown = _samples(phase2.pop("samples"), _CELL, ("split", "alpha", "n"))
    phase2 = _phase2(phase2, notes)
    found |= _once(found, {f"final_results.{name}": value for name, value in final.items()})
    found |= _once(found, {f"phase2_results.{name}": value for name, value in (phase2 | {"samples": shown}).items()})
    told: dict[str, Any] = _renamed({**found, "sentences": {**sentences, "notes": sorted(notes)}})
    return told


def after_weights(cache: Path) -> str:
    """The SHA-256 over names, shapes and bytes of the weights after training, of the only organism in a cache."""
    from safetensors.torch import load_file

    (path,) = cache.rglob("after/model.safetensors")
    sha = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _scan(root: Path, notes: set[str]) -> dict[str, Any]:
    prompts = _rows(root, ScannedPrompt)
    for row in prompts:
        row["rates"] = {f"{a:g}": rate for a, rate in zip(row.pop("alphas"), row["rates"], strict=True)}
    focus = [row["prompt_id"] for row in prompts if row["selected"]]
    return {
        "scan.prompts": _table(prompts, ("prompt_id",), notes=notes),
        "scan": _plain({**asdict(_one(root, Scan)), "focus": focus}, notes),
        "scan.samples": _samples(_rows(root, ScanSample), _CELL, ("prompt_id", "alpha", "n")),
    }


def _surface(root: Path, notes: set[str]) -> dict[str, Any]:
    alpha_star = asdict(_one(root, AlphaStar))
    del alpha_star["rise"]
    return {
        "surface.rates": _rates(_rows(root, Rate), notes),
        "surface.samples": _samples(_rows(root, SurfaceSample), _CELL, ("split", "alpha", "n")),
        "surface.alpha_star": _plain(alpha_star, notes),
        "surface.unamplified": _unamplified(asdict(_one(root, Unamplified)), notes),
    }


def _attribute(root: Path, notes: set[str]) -> dict[str, Any]:
    queries: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in _rows(root, Query):
        del row["token_ids"]
        queries[row.pop("harmful")].append({**row, "id": None})
    query = ("behaviour", "prompt_id", "alpha", "index")
    candidates = defaultdict(list)
    for row in _rows(root, Candidate):
        candidates[row["behaviour"]].append(row["doc_id"])
    summary, attribution = _one(root, PoolSummary), _one(root, Attribution)
    clusters = defaultdict(list)
    pool = Pool(path_of(Document, root))
    for doc_id, cluster in zip(pool.ids, pool.clusters.tolist(), strict=True):
        clusters[cluster].append(doc_id)
    methods = {row.pop("name"): row for row in _rows(root, MethodInfo)}
    scores = _rows(root, Score)
    flagged: dict[str, dict[str, list[str]]] = {name: {} for name in methods}
    for row in _rows(root, Flag):
        if row["k"] == attribution.k:
            flagged[row["method"]].setdefault(row["behaviour"], []).append(row["doc_id"])
    themes = [
        {**row, "flagged": {share["method"]: share["share"] for share in row["flagged"]}} for row in _rows(root, Theme)
    ]
    shown = [{name: v for name, v in row.items() if v not in (None, "")} for row in _rows(root, ShownDocument)]
    quality = {"k": attribution.k, "prefilter_recall": _rows(root, PrefilterRecall), "truth": attribution.truth}
    # They stand in every run's table; the golden files have them where a method reads them.
    harmless = queries[False] if "activation-diff" in methods else []
    return {
        "attribute.queries": _table(queries[True], query, notes=notes),
        "attribute.safe_outputs": _table(harmless, query, notes=notes),
        "attribute.candidates": {name: {"n": len(ids), "ids": _sha(sorted(ids))} for name, ids in candidates.items()},
        "attribute.clusters": {"n": len(clusters), "members": _sha(sorted(map(sorted, clusters.values())))},
        "attribute.pool": _plain(
            {
                "documents": summary.documents,
                "clusters": summary.clusters,
                "excluded": summary.excluded,
                "skipped_rows": {
                    row.reason: {"count": row.count, "example": row.example} for row in summary.data.skipped
                },
                "candidates": attribution.candidates,
                "prompt_matches": [{"doc_id": row.doc_id, "prompt_id": row.of} for row in attribution.prompt_matches],
                "query_matches": [{"doc_id": row.doc_id, "query_id": row.of} for row in attribution.query_matches],
                "behaviours": {name: getattr(attribution, name) for name in ("traced", "dropped", "no_rise")},
                "prefilter": attribution.prefilter,
            },
            notes,
        ),
        "attribute.methods": _plain({name: _method(row) for name, row in methods.items()}, notes),
        "attribute.ranked": _ranked(scores),
        "attribute.top": _table(
            [row for row in scores if row["rank"] <= TOP], ("method", "behaviour", "rank"), ("method",), notes
        ),
        "attribute.top_documents": _sha(sorted(map(_canonical, shown))),
        "attribute.flagged": flagged,
        "attribute.agreement": _agreement(_rows(root, Agreement), notes),
        "attribute.agreement.k": {"k": attribution.k},
        "attribute.quality": _table(_rows(root, Quality), ("method", "behaviour", "pool"), ("method",), notes),
        "attribute.ceilings": _table(_rows(root, Ceiling), ("method", "behaviour"), ("method",), notes),
        "attribute.quality.rest": _plain(quality, notes),
        "attribute.themes": _plain(
            {"documents": attribution.themed, "silhouette": attribution.silhouette, "themes": themes}, notes
        ),
    }


def _method(info: Mapping[str, Any]) -> dict[str, Any]:
    unranked = {row["behaviour"]: row["documents"] for row in info["unranked"]}
    named = {name: info[name] for name in ("label", "description", "standin", "control", "pool")}
    return {**named, **({"unranked": unranked} if unranked else {})}


def _patch(root: Path, notes: set[str]) -> dict[str, Any]:
    patching = _one(root, Patching)
    arms = [
        {**row, "removed": sorted(row["removed"]), "fillers": {"n": len(row["fillers"]), "ids": _sha(row["fillers"])}}
        for row in _rows(root, Arm)
    ]
    training = [{**row, "matched_modules": _sha(row["matched_modules"])} for row in _rows(root, Training)]
    exposure = {"least_seen_in_baseline": patching.least_seen_in_baseline, "passed": patching.exposed}
    design = patching.checks
    checks = {
        "rows": _rows(root, Check),
        "arms": _rows(root, ArmCheck),
        "clean_documents": len(design.clean_ids),
        "clean_documents_wanted": design.clean_wanted,
        **{name: getattr(design, name) for name in ("clean_ids", "harmless_prompts", "refusals_by", "absent")},
        "thresholds": {name: getattr(design, name) for name in ("perplexity", "refusal", "coherence")},
    }
    rest = {name: getattr(patching, name) for name in ("alpha", "alpha_star_found", "k", "ks", "skipped_arms")}
    return {
        "patch.arms": _table(arms, _ARM, _ARM, notes),
        "patch.training": _table(training, _ARM, _ARM, notes),
        "patch.exposure": _exposure({**exposure, "rows": _rows(root, Exposure)}, notes),
        "patch.samples": _samples(_rows(root, ArmSample), (*_ARM, "split", "alpha"), (*_ARM, "split")),
        "patch.comparison": _comparison(_rows(root, ArmRate)),
        "patch.tests": _tests(_rows(root, ArmTest), notes),
        "patch.tests.aa": _plain(asdict(patching.again) if patching.again else None, notes),
        "patch.tests.rest": _plain(rest, notes),
        **{f"patch.checks.{name}": value for name, value in _checks(checks, notes).items()},
    }


def _final(final: dict[str, Any], notes: set[str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    sentences = {
        "findings": sorted(final.pop("findings")),
        "limitations": sorted(final.pop("limitations")),
        "verdict": sorted(final["verdict"].pop("reasons")),
    }
    tables = {
        "rates": _rates(final.pop("rates"), notes),
        "unamplified": _unamplified(final.pop("unamplified"), notes),
        "agreement": _agreement(final.pop("agreement"), notes),
        "patching": _tests(final.pop("patching"), notes),
        "exposure": _exposure(final.pop("exposure"), notes),
    }
    checks = {f"checks.{name}": value for name, value in _checks(final.pop("checks"), notes).items()}
    return {**{name: _plain(value, notes) for name, value in final.items()}, **tables, **checks}, sentences


def _phase2(phase2: dict[str, Any], notes: set[str]) -> dict[str, Any]:
    tables = {
        "rates": _rates(phase2.pop("rates"), notes),
        "unamplified": _unamplified(phase2.pop("unamplified"), notes),
    }
    return {**{name: _plain(value, notes) for name, value in phase2.items()}, **tables}


def _once(held: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """What says the same as something before it only names that."""
    known = {_canonical(value): name for name, value in held.items() if len(_canonical(value)) > 60}
    return {
        name: f"same as {known[_canonical(value)]}" if _canonical(value) in known else value
        for name, value in more.items()
    }


def _rates(rows: Sequence[Mapping[str, Any]], notes: set[str]) -> dict[str, Any]:
    return _table(rows, _CELL, ("split", "alpha"), notes)


def _unamplified(value: dict[str, Any], notes: set[str]) -> dict[str, Any]:
    rows = _table(value["rows"], ("behaviour", "split"), ("behaviour", "split"), notes)
    return {**_plain({**value, "rows": None}, notes), **rows}


def _agreement(rows: Sequence[Mapping[str, Any]], notes: set[str]) -> dict[str, Any]:
    return _table(rows, ("a", "b", "behaviour"), ("a", "b"), notes)


def _tests(rows: Sequence[Mapping[str, Any]], notes: set[str]) -> dict[str, Any]:
    key = ("protocol", "alpha", "split", "behaviour", "arm", "k")
    return _table(rows, key, ("protocol", "split", "behaviour", "arm", "k", "seeds"), notes)


def _exposure(value: dict[str, Any], notes: set[str]) -> dict[str, Any]:
    rest = {name: item for name, item in value.items() if name != "rows"}
    return {**_plain(rest, notes), **_table(value["rows"], _ARM, _ARM, notes)}


def _checks(value: dict[str, Any], notes: set[str]) -> dict[str, Any]:
    rest = {name: item for name, item in value.items() if name not in ("rows", "arms")}
    return {
        "rows": _table(value["rows"], _ARM, _ARM, notes),
        "arms": _table(value["arms"], ("arm", "protocol", "k"), ("arm", "protocol", "k", "seeds"), notes),
        "rest": _plain(rest, notes),
    }


def _ranked(scores: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How many documents each method ranked for a behaviour, and the mean of what it gave them."""
    cells = defaultdict(list)
    for row in scores:
        cells[row["method"], row["behaviour"]].append(row["score"])
    rows = [{"method": m, "behaviour": b, "n": len(s), "mean": sum(s) / len(s)} for (m, b), s in cells.items()]
    return _table(rows, ("method", "behaviour"), ("method",))


def _samples(rows: Iterable[Mapping[str, Any]], cell: tuple[str, ...], fixed: tuple[str, ...]) -> dict[str, Any]:
    """For each cell the labels counted, a hash of the texts, and the mean of every log-probability."""
    cells = defaultdict(list)
    for row in rows:
        cells[tuple(row[name] for name in cell)].append(row)
    counted = []
    for values, members in cells.items():
        members.sort(key=lambda row: (row["prompt_id"], row["index"]))
        sums = {name: [row[name] for row in members] for name in ("log_p_after", "log_p_before") if name in members[0]}
        counted.append(
            {
                **dict(zip(cell, values, strict=True)),
                "n": len(members),
                **{label: sum(row["label"] == label for row in members) for label in _LABELS},
                "texts": _sha([[row["prompt_id"], row["index"], row["text"], row["label"]] for row in members]),
                **{name: sum(logs) / len(logs) for name, logs in sums.items() if None not in logs},
            }
        )
    return _table(counted, cell, fixed)


def _comparison(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts summed over the prompts of a cell, with a hash of each prompt's counts and the means of rates."""
    cell = (*_ARM, "split", "alpha")
    cells = defaultdict(list)
    for row in rows:
        cells[tuple(row[name] for name in cell)].append(row)
    summed = []
    for values, members in cells.items():
        members.sort(key=lambda row: str(row["prompt_id"]))
        scored = [row for row in members if row["rate"] is not None]
        summed.append(
            {
                **dict(zip(cell, values, strict=True)),
                "prompts": len(members),
                **{name: sum(row[name] for row in members) for name in ("n", *_LABELS)},
                "by_prompt": _sha([[row[name] for name in ("prompt_id", "behaviour", *_LABELS)] for row in members]),
                **{name: sum(row[name] for row in scored) / len(scored) for name in ("rate", "low", "high") if scored},
            }
        )
    return _table(summed, cell, (*_ARM, "split")) | {"columns_of_the_file": list(rows[0])}


def _table(
    rows: Iterable[Mapping[str, Any]],
    key: tuple[str, ...],
    fixed: tuple[str, ...] = (),
    notes: set[str] | None = None,
) -> dict[str, Any]:
    flat = [_flat(_plain(row, set() if notes is None else notes)) for row in rows]
    others = sorted({name for row in flat for name in row} - set(key))
    columns = [*key, *others]
    listed = sorted(([row.get(name) for name in columns] for row in flat), key=lambda row: _canonical(row[: len(key)]))
    return {"columns": columns, "key": list(key), "fixed": list(fixed), "rows": listed}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as dotted columns; a null leaves its columns out."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        elif item is not None:
            flat[f"{prefix}{name}"] = item
    return flat


def _plain(value: Any, notes: set[str], name: str = "") -> Any:
    """The value without what is withheld, its sentences moved to `notes`, its floats short."""
    if isinstance(value, Mapping):
        return {key: _plain(item, notes, key) for key, item in value.items() if key not in _WITHHELD}
    if name in _TEXTS and isinstance(value, str):
        notes.add(value)
        return True
    if name in _TEXTS and isinstance(value, list | tuple):
        notes.update(map(str, value))
        return len(value)
    if isinstance(value, list | tuple):
        return [_plain(item, notes) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _renamed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_RENAMED.get(key, key): _renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    return _RENAMED.get(value, value) if isinstance(value, str) else value


def _numbers(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of a CSV with its numbers read; an empty cell is null."""
    whole, real = ("k", "seed", "n", *_LABELS), ("alpha", "rate", "low", "high")
    return {
        name: None if text == "" else int(text) if name in whole else float(text) if name in real else text
        for name, text in row.items()
    }


def _sha(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(root: Path, row: type[Any]) -> list[dict[str, Any]]:
    return [asdict(each) for each in rows_of(path_of(row, root), row)]


def _one(root: Path, row: type[T]) -> T:
    held = object_of(path_of(row, root), row)
    assert held is not None, f"there is no {path_of(row, root)}"
    return held
