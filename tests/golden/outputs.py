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
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

__all__ = ["after_weights", "outputs"]

DIGITS = 6
TOP = 20
_RENAMED: Mapping[str, str] = {}
"""Names of today by the names that the golden files hold, for keys and for values that are such a name."""
_WITHHELD = ("seconds", "mixed", "path")
_TEXTS = ("why", "why_no_p", "why_not", "withheld", "reason", "reasons", "description", "rule")
_LABELS = ("harmful", "refused", "harmless", "incoherent", "unscored")
_CELL = ("prompt_id", "behaviour", "split", "alpha")
_ARM = ("arm", "protocol", "k", "seed")


def outputs(run_folder: Path) -> dict[str, Any]:
    """Every result of a finished run, as JSON holds it."""
    notes: set[str] = set()
    artifacts = run_folder / "artifacts"
    found = {
        **_scan(artifacts / "scan", notes),
        **_surface(artifacts / "surface", notes),
        **_attribute(artifacts / "attribute", notes),
        **_patch(artifacts / "patch", notes),
    }
    with (run_folder / "patching_comparison.csv").open(newline="") as file:
        table = _comparison([_numbers(row) for row in csv.DictReader(file)])
    found |= _once(found, {"patching_comparison.csv": table})
    final, sentences = _final(_json(run_folder / "final_results.json"), notes)
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


def _scan(folder: Path, notes: set[str]) -> dict[str, Any]:
    scan = _json(folder / "scan.json")
    return {
        "scan.prompts": _table(scan.pop("prompts"), ("prompt_id",), notes=notes),
        "scan": _plain(scan, notes),
        "scan.samples": _samples(_parquet(folder / "samples.parquet"), _CELL, ("prompt_id", "alpha", "n")),
    }


def _surface(folder: Path, notes: set[str]) -> dict[str, Any]:
    return {
        "surface.rates": _rates(_parquet(folder / "rates.parquet"), notes),
        "surface.samples": _samples(_parquet(folder / "samples.parquet"), _CELL, ("split", "alpha", "n")),
        "surface.alpha_star": _plain(_json(folder / "alpha_star.json"), notes),
        "surface.unamplified": _unamplified(_json(folder / "unamplified.json"), notes),
    }


def _attribute(folder: Path, notes: set[str]) -> dict[str, Any]:
    queries = [{**row, "id": None} for row in _jsonl(folder / "queries.jsonl")]
    safe = [{**row, "id": None} for row in _jsonl(folder / "safe_outputs.jsonl", optional=True)]
    query = ("behaviour", "prompt_id", "alpha", "index")
    candidates = defaultdict(list)
    for row in _jsonl(folder / "candidates.jsonl"):
        candidates[row["behaviour"]].append(row["doc_id"])
    clusters = defaultdict(list)
    for row in _jsonl(folder / "clusters.jsonl"):
        clusters[row["cluster"]].append(row["doc_id"])
    ranked = {path.stem: _jsonl(path) for path in sorted((folder / "scores").glob("*.jsonl"))}
    quality, agreement, themes = (_json(folder / f"{name}.json") for name in ("quality", "agreement", "themes"))
    return {
        "attribute.queries": _table(queries, query, notes=notes),
        "attribute.safe_outputs": _table(safe, query, notes=notes),
        "attribute.candidates": {name: {"n": len(ids), "ids": _sha(sorted(ids))} for name, ids in candidates.items()},
        "attribute.clusters": {"n": len(clusters), "members": _sha(sorted(map(sorted, clusters.values())))},
        "attribute.pool": _plain(_json(folder / "pool.json"), notes),
        "attribute.methods": _plain(_json(folder / "methods.json"), notes),
        "attribute.ranked": _ranked(ranked),
        "attribute.top": _table(
            [{"method": method, **row} for method, rows in ranked.items() for row in rows if row["rank"] <= TOP],
            ("method", "behaviour", "rank"),
            ("method",),
            notes,
        ),
        "attribute.top_documents": _sha(sorted(_canonical(row) for row in _jsonl(folder / "top_documents.jsonl"))),
        "attribute.flagged": _plain(_json(folder / "flagged.json"), notes),
        "attribute.agreement": _agreement(agreement.pop("rows"), notes),
        "attribute.agreement.k": agreement,
        "attribute.quality": _table(quality.pop("rows"), ("method", "behaviour", "pool"), ("method",), notes),
        "attribute.ceilings": _table(quality.pop("ceilings"), ("method", "behaviour"), ("method",), notes),
        "attribute.quality.rest": _plain(quality, notes),
        "attribute.themes": _plain(themes, notes),
    }


def _patch(folder: Path, notes: set[str]) -> dict[str, Any]:
    tests, checks, exposure = (_json(folder / f"{name}.json") for name in ("tests", "checks", "exposure"))
    arms = [
        {**row, "removed": sorted(row["removed"]), "fillers": {"n": len(row["fillers"]), "ids": _sha(row["fillers"])}}
        for row in _jsonl(folder / "arms.jsonl")
    ]
    training = [{**row, "matched_modules": _sha(row["matched_modules"])} for row in _jsonl(folder / "training.jsonl")]
    return {
        "patch.arms": _table(arms, _ARM, _ARM, notes),
        "patch.training": _table(training, _ARM, _ARM, notes),
        "patch.exposure": _exposure(exposure, notes),
        "patch.samples": _samples(_parquet(folder / "samples.parquet"), (*_ARM, "split", "alpha"), (*_ARM, "split")),
        "patch.comparison": _comparison(_parquet(folder / "comparison.parquet")),
        "patch.tests": _tests(tests.pop("rows"), notes),
        "patch.tests.aa": _plain(tests.pop("aa"), notes),
        "patch.tests.rest": _plain(tests, notes),
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


def _ranked(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """How many documents each method ranked for a behaviour, and the sum of what it gave them."""
    cells = defaultdict(list)
    for method, rows in methods.items():
        for row in rows:
            cells[method, row["behaviour"]].append(row["score"])
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
    if name in _TEXTS and isinstance(value, list):
        notes.update(map(str, value))
        return len(value)
    if isinstance(value, list):
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


def _jsonl(path: Path, *, optional: bool = False) -> list[dict[str, Any]]:
    if optional and not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
