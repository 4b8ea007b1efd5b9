"""The phase patch: arms trained and measured again, their differences tested."""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datablame.attribute.phase import ATTRIBUTE
from datablame.engine.execute import run_items
from datablame.engine.phase import Outputs, Phase, Tables, Work
from datablame.judge.choice import ClassifierInput, build, counted
from datablame.patch.checks import arm_checks, check_design, check_rows, clean_documents, drift_outputs
from datablame.patch.compare import Headline, again, compared, comparison
from datablame.patch.registry import ArmKind, arm_kinds
from datablame.patch.trainings import (
    ArmTraining,
    FineTuneData,
    PatchPlan,
    TrainingKey,
    adapter_groups,
    arm_trainings,
    fine_tune_data,
    measured_prompts,
    unamplified,
)
from datablame.surface.phase import SURFACE
from datablame.tables import (
    AlphaStar,
    Arm,
    ArmCheck,
    ArmInfo,
    ArmRate,
    ArmSample,
    ArmTest,
    Check,
    Exposure,
    MethodInfo,
    Patching,
    Query,
    SurfaceSample,
    Training,
)
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
    data = fine_tune_data(world, tables) if tables.rows(Query) else None
    if data is None:
        return _nothing(world)
    for skipped in data.skipped_arms:
        _logger.warning("the arm %s is skipped: it flagged no document", skipped)
    planned = arm_trainings(data)
    alpha = tables.of(AlphaStar).alpha_star
    if alpha is None:
        alpha = min((alpha for alpha in world.study.surface.alphas if alpha > 0), default=0.0)
    surfaced = tables.rows(SurfaceSample)
    fillers = [filler for each in planned for filler in each.intervention.fillers.values()]
    removed = [doc_id for each in planned for doc_id in each.intervention.removed]
    used, count = [*removed, *fillers], world.study.patch.clean_documents
    plan = PatchPlan(
        world=world,
        members=data.members,
        trained_on=tuple(dict.fromkeys([*data.members, *fillers])),
        prompts=tuple(measured_prompts(world, {row.prompt_id for row in surfaced})),
        alphas=tuple(dict.fromkeys((0.0, alpha))),
        watched=frozenset(removed),
        out=work.out,
        clean=tuple(clean_documents(data.items, data.members, data.all_flagged, used, count, world.seed)),
        after=tuple(drift_outputs(unamplified(surfaced), world.seed)),
    )
    return _outputs(tables, work, plan, data, planned, _measured(plan, planned, work))


def _measured(plan: PatchPlan, planned: Sequence[ArmTraining], work: Work) -> dict[str, Any]:
    """What workers measured by key, every output with its label."""
    from datablame.patch.measure import load_worker, perform

    journal = work.journal
    finished = journal.read()
    classifier = build(plan.world.study, plan.world.judge, work)
    texts = {prompt.id: prompt.text for prompt, _ in plan.prompts}

    def label(rows: Sequence[dict[str, Any]]) -> None:
        inputs = [ClassifierInput(row["behaviour"], texts[row["prompt_id"]], row["text"]) for row in rows]
        for row, given in zip(rows, classifier.label(inputs), strict=True):
            row["label"] = given.label
            if given.label == "unscored":
                row[_WHY] = given.reason

    def done(_: str, measured: dict[str, dict[str, Any]]) -> None:
        for key, result in measured.items():
            work.timings("patch/arm", key, result.pop("seconds"))
        try:
            if not classifier.prefers_bulk:
                label([row for result in measured.values() for row in result["samples"]])
        finally:
            # Without labels where the judge stopped the run: the arms need not be trained again.
            for key, result in measured.items():
                journal.append(key, result)

    run_items(
        functools.partial(load_worker, plan),
        perform,
        adapter_groups(plan.world.study, planned, frozenset(finished)),
        execution=work.execution,
        done=done,
        progress=work.progress,
        description="patch: training and measuring arms",
        already=len(finished),
        units=lambda group: sum(not each.finished for each in group) or 1,
    )
    results = journal.read()
    rows = [row for result in results.values() for row in result["samples"]]
    if unlabelled := [row for row in rows if "label" not in row]:
        work.progress.note(f"patch: labelling {len(unlabelled)} outputs")
        label(unlabelled)
    return results


def _outputs(
    tables: Tables,
    work: Work,
    plan: PatchPlan,
    data: FineTuneData,
    planned: Sequence[ArmTraining],
    results: Mapping[str, Any],
) -> Outputs:
    world, study, alpha = plan.world, plan.world.study, plan.alphas[-1]
    protocols, arms = study.patch.protocols, study.patch.arms
    ordered = sorted(
        planned,
        key=lambda each: (protocols.index(each.key.protocol), arms.index(each.key.arm), each.key.k, each.key.seed),
    )
    measured = [(each.key, results[str(each.key)]) for each in ordered]
    samples = [
        *_after_samples(plan, tables),
        *(
            ArmSample(*key, **{name: value for name, value in row.items() if name != _WHY})
            for key, result in measured
            for row in result["samples"]
        ),
    ]
    cells = comparison(samples)
    headline = Headline(study.patch.headline, study.attribute.top_k, alpha)
    tests = compared(cells, data.kinds, headline, study.seed, study.patch.margin)
    exposures = exposure_rows(ordered, results, data.kinds)
    checks = check_rows(world, work, [key for key, _ in measured], results, samples, alpha)
    design = check_design(world, plan.clean)
    drawn = {kind.name for kind in data.kinds if kind.drawn}
    flagged = [row for row in exposures if row.arm not in drawn]
    exposed = all(row.seen_in_baseline >= LEAST_SEEN and row.seen_in_arm == 0 for row in flagged)
    if not exposed:
        _logger.warning("exposure gate failed: see the table of exposure; raise patch.steps or patch.batch")
    labels = {method.name: method.label for method in tables.rows(MethodInfo)}
    return {
        ArmInfo: [kind.info(labels.get(kind.name) if kind.role == "method" else None) for kind in data.kinds],
        Arm: [
            Arm(*key, change.kind, change.removed, tuple(change.fillers.values()), change.loose)
            for key, change, _ in ordered
        ],
        Training: [_training(key, result["training"]) for key, result in measured],
        Exposure: exposures,
        ArmSample: samples,
        ArmRate: cells,
        ArmTest: tests,
        Check: checks,
        ArmCheck: arm_checks(checks, data.kinds, design),
        Patching: Patching(
            alpha=alpha,
            alpha_star_found=tables.of(AlphaStar).alpha_star is not None,
            k=study.attribute.top_k,
            ks=study.ks,
            skipped_arms=tuple(data.skipped_arms),
            again=again(tests, data.kinds),
            exposed=exposed,
            least_seen_in_baseline=LEAST_SEEN,
            unscored=counted(row[_WHY] for each in results.values() for row in each["samples"] if _WHY in row),
            checks=design,
        ),
    }


def _training(key: TrainingKey, numbers: Mapping[str, Any]) -> Training:
    return Training(*key, **{**numbers, **{name: tuple(numbers[name]) for name in ("losses", "matched_modules")}})


def exposure_rows(
    ordered: Sequence[ArmTraining], results: Mapping[str, Mapping[str, Any]], kinds: Sequence[ArmKind]
) -> list[Exposure]:
    """Exposure of every training that changes the data.

    A pair whose answers are exchanged counts as seen where it is seen as it was; how many were seen exchanged stands
    beside it.
    """
    roles = {kind.name: kind.role for kind in kinds}
    baseline = {
        (key.protocol, key.seed): results[str(key)]["exposure"] for key, *_ in ordered if roles[key.arm] == "baseline"
    }
    rows = []
    for key, change, _ in ordered:
        if roles[key.arm] in ("baseline", "again"):
            continue
        seen, own = baseline[key.protocol, key.seed], results[str(key)]
        in_baseline = sum(seen.get(doc_id, 0) > 0 for doc_id in change.removed)
        exchanged = sum(own["exposure_swapped"].get(doc_id, 0) > 0 for doc_id in change.swapped)
        rows.append(
            Exposure(
                *key,
                removed=len(change.removed),
                seen_in_baseline=in_baseline / len(change.removed) if change.removed else 1.0,
                seen_in_arm=sum(own["exposure"].get(doc_id, 0) > 0 for doc_id in change.removed),
                seen_swapped=exchanged if change.swapped else None,
            )
        )
    return rows


def _after_samples(plan: PatchPlan, tables: Tables) -> Iterable[ArmSample]:
    """The after model itself is measured by the surface phase."""
    name = next(kind.name for kind in arm_kinds(plan.world.study) if kind.role == "after")
    for row in tables.rows(SurfaceSample):
        if row.alpha in plan.alphas and row.label is not None:
            where = (row.prompt_id, row.behaviour, row.split, row.alpha, row.index)
            yield ArmSample(name, "none", 0, 0, *where, row.text, row.label)


def _nothing(world: World) -> Outputs:
    _logger.warning("no document was flagged, so there is nothing to remove; the patch phase is empty")
    patching = Patching(None, False, None, (), (), None, True, LEAST_SEEN, {}, check_design(world, None))
    rows: Outputs = {row: [] for row in (Arm, Training, Exposure, ArmSample, ArmRate, ArmTest, Check, ArmCheck)}
    return {ArmInfo: [kind.info(None) for kind in arm_kinds(world.study)], **rows, Patching: patching}


PATCH = Phase(
    "patch", 5, ("identity", "pool", "patch", "sampling", "judge", "attribute", "harmless"), (SURFACE, ATTRIBUTE), run
)
