"""The phase patch: arms trained and measured again, their differences tested."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datablame import tables as rows
from datablame.attribute.phase import ATTRIBUTE
from datablame.engine.execute import run_items
from datablame.engine.phase import Outputs, Phase, Tables, Work
from datablame.judge.choice import ClassifierInput, build, counted
from datablame.patch import trainings
from datablame.patch.checks import arm_checks, check_design, check_rows, clean_documents, drift_outputs
from datablame.patch.compare import Headline, again, compared, comparison
from datablame.patch.registry import ArmKind, arm_kinds
from datablame.surface.phase import SURFACE
from datablame.world import World

LEAST_SEEN = 0.9
"""Of the flagged documents, what the no-removal arm has to see."""

_logger = logging.getLogger(__name__)
_WHY = "label_reason"
"""Stands in the journal only, on outputs without a label."""


def run(world: World, tables: Tables, work: Work) -> Outputs:
    """Train and measure every arm. Where nothing surfaced, so that nothing was traced, the tables are empty.

    Raises:
        RequestError: the fine-tune set doesn't hold the flagged documents or leaves too few fillers.
    """
    data = trainings.fine_tune_data(world, tables) if tables.rows(rows.Query) else None
    if data is None:
        return _nothing(world)
    skipped, study, patch, kinds = data.skipped_arms, world.study, world.study.patch, data.kinds
    for arm in skipped:
        _logger.warning("the arm %s is skipped: it flagged no document", arm)
    alpha = alpha_star = tables.of(rows.AlphaStar).alpha_star
    if alpha is None:
        alpha = min((alpha for alpha in study.surface.alphas if alpha > 0), default=0.0)
    planned, surfaced = trainings.arm_trainings(data), tables.rows(rows.SurfaceSample)
    fillers = [filler for each in planned for filler in each.intervention.fillers.values()]
    removed = [doc_id for each in planned for doc_id in each.intervention.removed]
    used, count = [*removed, *fillers], patch.clean_documents
    plan = trainings.PatchPlan(
        world=world,
        members=data.members,
        trained_on=tuple(dict.fromkeys([*data.members, *fillers])),
        prompts=tuple(trainings.measured_prompts(world, {row.prompt_id for row in surfaced})),
        alphas=tuple(dict.fromkeys((0.0, alpha))),
        watched=frozenset(removed),
        out=work.out,
        clean=tuple(clean_documents(data.items, data.members, data.all_flagged, used, count, world.seed)),
        after=tuple(drift_outputs(surfaced, world.seed)),
    )
    results = _measured(plan, planned, work)
    planned.sort(key=lambda each: (patch.protocols.index(each.key.protocol), patch.arms.index(each.key.arm), each.key))
    keys, after = [each.key for each in planned], next(kind.name for kind in kinds if kind.role == "after")
    outputs = [(key, sample) for key in keys for sample in results[str(key)]["samples"]]
    # The after model itself is measured by the surface phase.
    samples = [
        rows.ArmSample(after, "none", 0, 0, s.prompt_id, s.behaviour, s.split, s.alpha, s.index, s.text, s.label)
        for s in surfaced
        if s.alpha in plan.alphas and s.label is not None
    ]
    samples += [
        rows.ArmSample(*key, **{name: sample[name] for name in sample.keys() - {_WHY}}) for key, sample in outputs
    ]
    cells, design = comparison(samples), check_design(world, plan.clean)
    tests = compared(cells, kinds, Headline(patch.headline, study.attribute.top_k, alpha), study.seed, patch.margin)
    checks = check_rows(world, work, keys, results, samples, alpha)
    exposures, drawn = exposure_rows(planned, results, kinds), {kind.name for kind in kinds if kind.drawn}
    flagged = [row for row in exposures if row.arm not in drawn]
    exposed = all(row.seen_in_baseline >= LEAST_SEEN and row.seen_in_arm == 0 for row in flagged)
    if not exposed:
        _logger.warning("exposure gate failed: see the table of exposure; raise patch.steps or patch.batch")
    # Tuples are lists in a journal.
    courses: list[dict[str, Any]] = [
        {name: tuple(of) if isinstance(of, list) else of for name, of in results[str(key)]["training"].items()}
        for key in keys
    ]
    labels = {method.name: method.label for method in tables.rows(rows.MethodInfo)}
    return {
        rows.ArmInfo: [kind.info(labels.get(kind.name) if kind.role == "method" else None) for kind in kinds],
        rows.Arm: [
            rows.Arm(*key, change.kind, change.removed, tuple(change.fillers.values()), change.loose)
            for key, change, *_ in planned
        ],
        rows.Training: [rows.Training(*key, **course) for key, course in zip(keys, courses, strict=True)],
        rows.Exposure: exposures,
        rows.ArmSample: samples,
        rows.ArmRate: cells,
        rows.ArmTest: tests,
        rows.Check: checks,
        rows.ArmCheck: arm_checks(checks, kinds, design),
        rows.Patching: rows.Patching(
            alpha=alpha,
            alpha_star_found=alpha_star is not None,
            k=study.attribute.top_k,
            ks=study.ks,
            skipped_arms=tuple(skipped),
            again=again(tests, kinds),
            exposed=exposed,
            least_seen_in_baseline=LEAST_SEEN,
            unscored=counted(sample[_WHY] for _, sample in outputs if _WHY in sample),
            checks=design,
        ),
    }


def _measured(plan: trainings.PatchPlan, planned: Sequence[trainings.ArmTraining], work: Work) -> dict[str, Any]:
    """What workers measured by key, every output with its label."""
    from datablame.patch.measure import load_worker, measure

    journal, study = work.journal, plan.world.study
    finished = journal.read()
    classifier = build(study, plan.world.judge, work)
    texts = {prompt.id: prompt.text for prompt, _ in plan.prompts}
    groups = trainings.adapter_groups(study, planned, frozenset(finished))
    arms = {str(each.key): each.keys for group in groups.values() for each in group}

    def label(samples: Sequence[dict[str, Any]]) -> None:
        inputs = [ClassifierInput(row["behaviour"], texts[row["prompt_id"]], row["text"]) for row in samples]
        for row, given in zip(samples, classifier.label(inputs), strict=True):
            row |= {"label": given.label} | ({_WHY: given.reason} if given.label == "unscored" else {})

    def done(_: str, measured: dict[str, dict[str, Any]]) -> None:
        for key, result in measured.items():
            work.timings("patch/arm", key, result.pop("seconds"))
        try:
            if not classifier.prefers_bulk:
                label([sample for result in measured.values() for sample in result["samples"]])
        finally:
            # Without labels where the judge stopped the run: the arms need not be trained again.
            for key, result in measured.items():
                for arm in arms.get(key, (key,)):
                    journal.append(str(arm), result)

    run_items(
        functools.partial(load_worker, plan),
        measure,
        groups,
        execution=work.execution,
        root=work.root,
        done=done,
        progress=work.progress,
        description="patch: training and measuring arms",
        already=len(finished),
        units=lambda group: sum(len(each.keys) for each in group if not each.finished) or 1,
    )
    results = journal.read()
    samples = [sample for result in results.values() for sample in result["samples"]]
    if unlabelled := [sample for sample in samples if "label" not in sample]:
        work.progress.note(f"patch: labelling {len(unlabelled)} outputs")
        label(unlabelled)
    return results


def exposure_rows(
    planned: Sequence[trainings.ArmTraining], results: Mapping[str, Mapping[str, Any]], kinds: Sequence[ArmKind]
) -> list[rows.Exposure]:
    """Exposure of every training that changes the data; a pair is seen as it was, and beside it how many exchanged."""
    roles = {kind.name: kind.role for kind in kinds}
    seen = {key: results[str(key)]["exposure"].keys() for key, *_ in planned}
    in_baseline = {(key.protocol, key.seed): ids for key, ids in seen.items() if roles[key.arm] == "baseline"}
    return [
        rows.Exposure(
            *key,
            removed=len(change.removed),
            seen_in_baseline=(
                len(in_baseline[key.protocol, key.seed] & change.removed) / len(change.removed)
                if change.removed
                else 1.0
            ),
            seen_in_arm=len(seen[key] & change.removed),
            seen_swapped=len(results[str(key)]["exposure_swapped"].keys() & change.swapped) if change.swapped else None,
        )
        for key, change, *_ in planned
        if roles[key.arm] not in ("baseline", "again")
    ]


def _nothing(world: World) -> Outputs:
    _logger.warning("no document was flagged, so there is nothing to remove; the patch phase is empty")
    kinds = (
        rows.Arm,
        rows.Training,
        rows.Exposure,
        rows.ArmSample,
        rows.ArmRate,
        rows.ArmTest,
        rows.Check,
        rows.ArmCheck,
    )
    patching = rows.Patching(None, False, None, (), (), None, True, LEAST_SEEN, {}, check_design(world, None))
    info = [kind.info(None) for kind in arm_kinds(world.study)]
    return {rows.ArmInfo: info, **{row: [] for row in kinds}, rows.Patching: patching}


PATCH = Phase(
    "patch", 7, ("identity", "pool", "patch", "sampling", "judge", "attribute", "harmless"), (SURFACE, ATTRIBUTE), run
)
