"""The phase patch: arms trained and measured again, their differences tested."""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from datablame.attribute.flags import flagged as flag
from datablame.config import Study
from datablame.corpus.documents import read_pool
from datablame.corpus.duplicates import full_text
from datablame.errors import RequestError
from datablame.execute import Execution, Progress, run_items
from datablame.judge.classifier import Output, build
from datablame.judge.reasons import counted
from datablame.patch.arms import Item, draw_random, exposure, fine_tune_set, replaced
from datablame.patch.compare import compared, comparison
from datablame.patch.measure import Job, Plan, measure, set_up
from datablame.records import Arm, Document, Prompt
from datablame.run_folder import (
    Inputs,
    Journal,
    read_json,
    read_jsonl,
    read_table,
    write_json,
    write_jsonl,
    write_table,
)
from datablame.surface.run import prompts_of

__all__ = ["run"]

_logger = logging.getLogger(__name__)
_SEEN_SHARE = 0.9
_UNFLAGGED = ("untrained", "baseline", "random")
_UNTRAINED = {"arm": "untrained", "protocol": "none", "k": 0, "seed": 0}
_WHY = "label_reason"
"""Stands in the journal only, on rows without a label."""
_SAMPLE_FIELDS = ("prompt_id", "behaviour", "split", "alpha", "index", "text", "label")


def run(study: Study, inputs: Inputs, out: Path, execution: Execution, progress: Progress) -> None:
    """Train and measure every arm: writes arms.jsonl, exposure.json, samples.parquet, comparison.parquet, tests.json.

    Where nothing surfaced, so that nothing was traced, the artifacts are empty.

    Raises:
        RequestError: the fine-tune set doesn't hold the flagged documents or leaves too few fillers.
    """
    if not read_jsonl(inputs.artifact("attribute", "queries.jsonl")):
        _write_nothing(out)
        return
    pool = _pool(study, inputs, progress)
    k = study.patch.k or study.attribute.top_k
    removed_by = _removed(study, inputs, k)
    if not any(removed_by.values()):
        _write_nothing(out)
        return
    items = [Item(d.id, d.source, len(full_text(d)), cluster) for d, cluster in pool]
    unpatched = [name for name in study.attribute.methods if name not in (*removed_by, *_UNFLAGGED)]
    flags = [*removed_by.values(), *(_flags(inputs, name, k) for name in unpatched)]
    every = list(dict.fromkeys(doc_id for ids in flags for doc_id in ids))
    candidates = [row["doc_id"] for row in read_jsonl(inputs.artifact("attribute", "candidates.jsonl"))]
    members = fine_tune_set(items, study.patch.size, every, candidates, study.seed)
    jobs, loose = _jobs(study, items, members, removed_by, every, k)
    plan = _plan(study, inputs, out, {d.id: d for d, _ in pool}, members, jobs)
    skipped = _skipped(study, removed_by)
    for arm in skipped:
        _logger.warning("the arm %s is skipped: it flagged no document", arm)
    results = _measured(plan, jobs, inputs, out, execution, progress)
    _write(study, inputs, out, plan, jobs, results, loose, k, skipped)


def _pool(study: Study, inputs: Inputs, progress: Progress) -> list[tuple[Document, int]]:
    """The documents that attribution ranked, each with its duplicate cluster."""
    assert study.data is not None
    cluster_of = _clusters(inputs)
    documents = read_pool(study.data, study.seed, progress).documents if cluster_of else []
    if len({bool(document.rejected) for document in documents}) > 1:
        raise RequestError(
            f"data.path = {study.data.path} mixes preference pairs with documents of one answer, "
            "which are trained on in different ways; keep one kind"
        )
    return [(document, cluster_of[document.id]) for document in documents if document.id in cluster_of]


def _removed(study: Study, inputs: Inputs, k: int) -> dict[str, list[str]]:
    """What each method's arm, and the oracle's, takes out: whole clusters, the union over behaviours."""
    removed: dict[str, list[str]] = {}
    for arm in study.patch.arms:
        if arm == "oracle" and study.truth is not None:
            cluster_of = _clusters(inputs)
            planted = {cluster_of.get(row["doc_id"]) for row in read_jsonl(Path(study.truth))}
            removed[arm] = [doc_id for doc_id, cluster in cluster_of.items() if cluster in planted]
        elif arm not in (*_UNFLAGGED, "oracle"):
            removed[arm] = _flags(inputs, arm, k)
    return removed


def _flags(inputs: Inputs, method: str, k: int) -> list[str]:
    """The members of a method's first `k` clusters for each behaviour, none where it has no scores."""
    path = inputs.artifact("attribute", f"scores/{method}.jsonl")
    cluster_of = _clusters(inputs)
    ranked: dict[str, list[str]] = {}
    for row in sorted(read_jsonl(path) if path.exists() else [], key=lambda row: row["rank"]):
        ranked.setdefault(row["behaviour"], []).append(row["doc_id"])
    ids = [doc_id for behaviour in ranked for doc_id in flag(ranked[behaviour], cluster_of, k)]
    return list(dict.fromkeys(ids))


def _clusters(inputs: Inputs) -> dict[str, int]:
    rows = read_jsonl(inputs.artifact("attribute", "clusters.jsonl"))
    return {row["doc_id"]: row["cluster"] for row in rows}


def _jobs(
    study: Study,
    items: Sequence[Item],
    members: Sequence[str],
    removed_by: Mapping[str, Sequence[str]],
    every: Sequence[str],
    k: int,
) -> tuple[list[Job], dict[str, int]]:
    """Every training in the order of running, LoRA first for it takes longer; and how many fillers match loosely."""
    methods = {arm: ids for arm, ids in removed_by.items() if arm != "oracle" and ids} or removed_by
    jobs, loose = [], {}
    for protocol in sorted(study.patch.protocols, key=lambda name: study.patch.training_of(name).method != "lora"):
        for seed in study.patch.seeds_of(protocol):
            for arm in study.patch.arms:
                if arm == "untrained" or arm in _skipped(study, removed_by):
                    continue
                gone = removed_by.get(arm, ())
                if arm == "random":
                    gone = draw_random(items, members, methods, study.seed, seed)
                replacement = replaced(items, members, every, gone, study.seed)
                job = Job(arm, protocol, k, seed, replacement.fillers)
                jobs.append(job)
                loose[job.key] = replacement.loose
    return jobs, loose


def _skipped(study: Study, removed_by: Mapping[str, Sequence[str]]) -> list[str]:
    """Arms that would remove nothing although they should."""
    return [arm for arm in study.patch.arms if arm not in _UNFLAGGED and not removed_by.get(arm)]


def _plan(
    study: Study,
    inputs: Inputs,
    out: Path,
    documents: Mapping[str, Document],
    members: Sequence[str],
    jobs: Sequence[Job],
) -> Plan:
    alpha_star = _alpha_star(study, inputs).alpha
    surfaced = {row["prompt_id"] for row in read_table(inputs.artifact("surface", "samples.parquet"))}
    attribution = [prompt for prompt in prompts_of(study, "attribution") if prompt.id in surfaced]
    prompts: list[tuple[Prompt, int]] = [
        *((prompt, study.patch.samples) for prompt in prompts_of(study, "held-out")),
        *((prompt, study.patch.attribution_samples) for prompt in attribution),
    ]
    fillers = [filler for job in jobs for filler in job.fillers.values()]
    return Plan(
        study=study,
        members=tuple(members),
        documents={doc_id: documents[doc_id] for doc_id in dict.fromkeys([*members, *fillers])},
        prompts=tuple(prompts),
        alphas=tuple(dict.fromkeys((0.0, alpha_star))),
        watched=frozenset(doc_id for job in jobs for doc_id in job.fillers),
        out=out,
    )


class _AlphaStar(NamedTuple):
    """Where arms are compared, and whether alpha* was found or the least amplification stands in for it."""

    alpha: float
    found: bool


def _alpha_star(study: Study, inputs: Inputs) -> _AlphaStar:
    chosen = read_json(inputs.artifact("surface", "alpha_star.json"))["alpha_star"]
    if chosen is not None:
        return _AlphaStar(chosen, True)
    return _AlphaStar(min((alpha for alpha in study.surface.alphas if alpha > 0), default=0.0), False)


def _measured(
    plan: Plan, jobs: Sequence[Job], inputs: Inputs, out: Path, execution: Execution, progress: Progress
) -> dict[str, Any]:
    journal = Journal(out / "journal.jsonl")
    finished = journal.read()
    classifier = build(plan.study, inputs)
    texts = {prompt.id: prompt.text for prompt, _ in plan.prompts}

    def label(rows: Sequence[dict[str, Any]]) -> None:
        said = classifier.label([Output(row["behaviour"], texts[row["prompt_id"]], row["text"]) for row in rows])
        for row, each in zip(rows, said, strict=True):
            row["label"] = each.label
            if each.label == "unscored":
                row[_WHY] = each.reason

    def done(key: str, result: dict[str, Any]) -> None:
        inputs.timings("patch/arm", key, result.pop("seconds"))
        try:
            if not classifier.at_once:
                label(result["rows"])
        finally:
            # Without labels where the judge stopped the run: the arm need not be trained again.
            journal.append(key, result)

    run_items(
        functools.partial(set_up, plan),
        measure,
        {job.key: job for job in jobs if job.key not in finished},
        execution=execution,
        done=done,
        progress=progress,
        description="patch: training and measuring arms",
        already=len(finished),
    )
    results = journal.read()
    rows = [row for result in results.values() for row in result["rows"]]
    if unlabelled := [row for row in rows if "label" not in row]:
        progress.note(f"patch: labelling {len(unlabelled)} outputs")
        label(unlabelled)
    reasons = [row.pop(_WHY, None) for row in rows]
    if any(reasons):
        write_json(out / "unscored.json", counted([reason for reason in reasons if reason is not None]))
    return results


def _write(
    study: Study,
    inputs: Inputs,
    out: Path,
    plan: Plan,
    jobs: Sequence[Job],
    results: Mapping[str, Any],
    loose: Mapping[str, int],
    k: int,
    skipped: Sequence[str],
) -> None:
    ordered = sorted(
        jobs,
        key=lambda job: (study.patch.protocols.index(job.protocol), study.patch.arms.index(job.arm), job.seed),
    )
    samples = [*_untrained_rows(plan, inputs), *_sample_rows(ordered, results)]
    write_table(out / "samples.parquet", samples)
    table = comparison(samples)
    write_table(out / "comparison.parquet", table)
    star = _alpha_star(study, inputs)
    tests = compared(table, study.patch.arms, (study.patch.headline, k, star.alpha), study.seed)
    about = {"alpha": star.alpha, "alpha_star_found": star.found, "k": k, "skipped_arms": list(skipped)}
    write_json(out / "tests.json", {**about, "rows": tests})
    write_jsonl(
        out / "arms.jsonl",
        [
            {
                **asdict(Arm(j.arm, j.protocol, j.k, j.seed, tuple(j.fillers), tuple(j.fillers.values()))),
                "loosely_matched": loose[j.key],
            }
            for j in ordered
        ],
    )
    write_jsonl(out / "training.jsonl", [{**_name(j), **results[j.key]["training"]} for j in ordered])
    write_json(out / "exposure.json", _exposures(ordered, results))


def _untrained_rows(plan: Plan, inputs: Inputs) -> Iterable[dict[str, Any]]:
    """The after model itself is measured by the surface phase."""
    for row in read_table(inputs.artifact("surface", "samples.parquet")):
        if row["alpha"] in plan.alphas:
            yield {**{field: row[field] for field in _SAMPLE_FIELDS}, **_UNTRAINED}


def _sample_rows(jobs: Iterable[Job], results: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for job in jobs:
        for row in results[job.key]["rows"]:
            yield {**row, **_name(job)}


def _name(job: Job) -> dict[str, Any]:
    return {"arm": job.arm, "protocol": job.protocol, "k": job.k, "seed": job.seed}


def _exposures(jobs: Sequence[Job], results: Mapping[str, Any]) -> dict[str, Any]:
    """Whether removal could have mattered: the no-removal arm saw what was removed, the removal arm did not."""
    baseline = {(job.protocol, job.seed): results[job.key]["seen"] for job in jobs if job.arm == "baseline"}
    rows = [
        {**_name(job), **exposure(list(job.fillers), baseline[job.protocol, job.seed], results[job.key]["seen"])}
        for job in jobs
        if job.arm != "baseline"
    ]
    flagged = [row for row in rows if row["arm"] != "random"]
    passed = all(row["seen_in_baseline"] >= _SEEN_SHARE and row["seen_in_arm"] == 0 for row in flagged)
    if not passed:
        _logger.warning("exposure gate failed: see exposure.json; raise patch.steps or patch.batch")
    return {"rows": rows, "least_seen_in_baseline": _SEEN_SHARE, "passed": passed}


def _write_nothing(out: Path) -> None:
    _logger.warning("no document was flagged, so there is nothing to remove; the patch phase is empty")
    for name in ("samples.parquet", "comparison.parquet"):
        write_table(out / name, [])
    for name in ("arms.jsonl", "training.jsonl"):
        write_jsonl(out / name, [])
    empty: dict[str, Any] = {"alpha": None, "alpha_star_found": False, "k": None, "skipped_arms": [], "rows": []}
    write_json(out / "tests.json", empty)
    write_json(out / "exposure.json", {"rows": [], "least_seen_in_baseline": _SEEN_SHARE, "passed": True})
