"""The phase patch: arms trained and measured again, their differences tested."""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.run_folder import (
    Inputs,
    Journal,
    read_json,
    read_jsonl,
    read_table,
    write_json,
    write_jsonl,
    write_table,
)
from datablame.judge.classifier import ClassifierInput, build
from datablame.judge.reasons import counted
from datablame.patch.arms import Item, fine_tune_set
from datablame.patch.bench import Job, Plan, set_up
from datablame.patch.checks_artifact import asked_of, write_checks, write_no_checks
from datablame.patch.compare import again, compared, comparison
from datablame.patch.exposure import SEEN_SHARE, exposures, named
from datablame.patch.flagged import flags_of, read_clusters, read_rankings
from datablame.patch.jobs import Prepared, jobs_of, skipped_arms, targets_of, work_items
from datablame.patch.measure import Together, perform
from datablame.study.schema import Study
from datablame.surface.run import prompts_of
from datablame.tables import Arm, Document, Prompt
from datablame.world.documents import read_pool
from datablame.world.duplicates import full_text
from datablame.world.kinds import check_kind

_logger = logging.getLogger(__name__)
_UNTRAINED = {"arm": "untrained", "protocol": "none", "k": 0, "seed": 0}
_WHY = "label_reason"
"""Stands in the journal only, on rows without a label."""
_SAMPLE_FIELDS = ("prompt_id", "behaviour", "split", "alpha", "index", "text", "label")


def run(study: Study, inputs: Inputs, out: Path, execution: Execution, progress: Progress) -> None:
    """Train and measure every arm: writes arms.jsonl, exposure.json, samples.parquet, comparison.parquet, tests.json.

    Where nothing surfaced, so that nothing was traced, the artifacts are empty.

    Raises:
        RequestError: the fine-tune set doesn't hold the flagged documents or leaves too few fillers, or the pool cannot
            be trained on as the study asks.
    """
    if not read_jsonl(inputs.artifact("attribute", "queries.jsonl")):
        _write_nothing(study, inputs, out)
        return
    pool = _pool(study, inputs, progress)
    cluster_of, rankings = read_clusters(inputs), read_rankings(study, inputs)
    flags = flags_of(study, rankings, cluster_of)
    wanted = {*study.patch.arms, study.patch.bottom_method if "bottom" in study.patch.arms else None}
    if not any(ids for (arm, _), ids in flags.items() if arm in wanted):
        _write_nothing(study, inputs, out)
        return
    items = [Item(d.id, d.source, len(full_text(d)), cluster) for d, cluster in pool]
    every = list(dict.fromkeys(doc_id for ids in flags.values() for doc_id in ids))
    candidates = [row["doc_id"] for row in read_jsonl(inputs.artifact("attribute", "candidates.jsonl"))]
    spare = study.patch.intervention != "swap"
    members = fine_tune_set(items, study.patch.size, every, candidates, study.seed, spare=spare)
    targets = targets_of(study, rankings, flags, cluster_of, members)
    prepared = jobs_of(study, items, members, every, targets)
    jobs = [each.job for each in prepared]
    documents = {d.id: d for d, _ in pool}
    plan = _plan(study, inputs, out, documents, members, jobs)
    plan = replace(plan, asked=asked_of(study, inputs, items, documents, members, every, jobs))
    skipped = skipped_arms(study, targets)
    for arm in skipped:
        _logger.warning("the arm %s is skipped: it flagged no document", arm)
    results = _measured(plan, jobs, inputs, out, execution, progress)
    _write(study, inputs, out, plan, prepared, results, skipped)


def _pool(study: Study, inputs: Inputs, progress: Progress) -> list[tuple[Document, int]]:
    """The documents that attribution ranked, each with its duplicate cluster."""
    assert study.data is not None
    cluster_of = read_clusters(inputs)
    documents = read_pool(study.data, study.seed, progress).documents if cluster_of else []
    check_kind(documents, study)
    return [(document, cluster_of[document.id]) for document in documents if document.id in cluster_of]


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
        watched=frozenset(doc_id for job in jobs for doc_id in (*job.fillers, *job.swapped)),
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
        said = classifier.label(
            [ClassifierInput(row["behaviour"], texts[row["prompt_id"]], row["text"]) for row in rows]
        )
        for row, each in zip(rows, said, strict=True):
            row["label"] = each.label
            if each.label == "unscored":
                row[_WHY] = each.reason

    def done(_: str, found: dict[str, dict[str, Any]]) -> None:
        for key, result in found.items():
            inputs.timings("patch/arm", key, result.pop("seconds"))
        try:
            if not classifier.prefers_bulk:
                label([row for result in found.values() for row in result["rows"]])
        finally:
            # Without labels where the judge stopped the run: the arms need not be trained again.
            for key, result in found.items():
                journal.append(key, result)

    run_items(
        functools.partial(set_up, plan),
        perform,
        work_items(plan.study, jobs, frozenset(finished)),
        execution=execution,
        done=done,
        progress=progress,
        description="patch: training and measuring arms",
        already=len(finished),
        units=_arms,
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


def _arms(item: Together | None) -> int:
    return len(item.jobs) - len(item.finished) if item is not None else 1


def _write(
    study: Study,
    inputs: Inputs,
    out: Path,
    plan: Plan,
    prepared: Sequence[Prepared],
    results: Mapping[str, Any],
    skipped: Sequence[str],
) -> None:
    protocols, arms = study.patch.protocols, study.patch.arms
    ordered = sorted(
        prepared,
        key=lambda each: (protocols.index(each.job.protocol), arms.index(each.job.arm), each.job.k, each.job.seed),
    )
    jobs = [each.job for each in ordered]
    samples = [*_untrained_rows(plan, inputs), *_sample_rows(jobs, results)]
    write_table(out / "samples.parquet", samples)
    table = comparison(samples)
    write_table(out / "comparison.parquet", table)
    star = _alpha_star(study, inputs)
    headline = (study.patch.headline, study.attribute.top_k, star.alpha)
    tests = compared(table, arms, headline, study.seed, study.patch.margin)
    about = {
        "alpha": star.alpha,
        "alpha_star_found": star.found,
        "k": study.attribute.top_k,
        "ks": list(study.ks),
        "skipped_arms": list(skipped),
        "aa": again(tests),
    }
    write_json(out / "tests.json", {**about, "rows": tests})
    write_jsonl(out / "arms.jsonl", [_arm(each) for each in ordered])
    write_jsonl(out / "training.jsonl", [{**named(job), **results[job.key]["training"]} for job in jobs])
    write_json(out / "exposure.json", exposures(jobs, results))
    write_checks(study, inputs, out, plan.asked, jobs, results, samples, star.alpha)


def _arm(prepared: Prepared) -> dict[str, Any]:
    job = prepared.job
    changed = job.swapped or tuple(job.fillers)
    arm = Arm(job.arm, job.protocol, job.k, job.seed, prepared.intervention, changed, tuple(job.fillers.values()))
    return {**asdict(arm), "loosely_matched": prepared.loose}


def _untrained_rows(plan: Plan, inputs: Inputs) -> Iterable[dict[str, Any]]:
    """The after model itself is measured by the surface phase."""
    for row in read_table(inputs.artifact("surface", "samples.parquet")):
        if row["alpha"] in plan.alphas:
            yield {**{field: row[field] for field in _SAMPLE_FIELDS}, **_UNTRAINED}


def _sample_rows(jobs: Iterable[Job], results: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for job in jobs:
        for row in results[job.key]["rows"]:
            yield {**row, **named(job)}


def _write_nothing(study: Study, inputs: Inputs, out: Path) -> None:
    _logger.warning("no document was flagged, so there is nothing to remove; the patch phase is empty")
    for name in ("samples.parquet", "comparison.parquet"):
        write_table(out / name, [])
    for name in ("arms.jsonl", "training.jsonl"):
        write_jsonl(out / name, [])
    about: dict[str, Any] = {"alpha": None, "alpha_star_found": False, "k": None, "ks": [], "skipped_arms": []}
    write_json(out / "tests.json", {**about, "aa": None, "rows": []})
    write_json(out / "exposure.json", {"rows": [], "least_seen_in_baseline": SEEN_SHARE, "passed": True})
    write_no_checks(study, inputs, out)
