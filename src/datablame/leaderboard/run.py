"""From a request to a leaderboard: studies brought up to date, what they found gathered."""

from collections.abc import Mapping
from pathlib import Path

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress
from datablame.engine.phase import Tables
from datablame.errors import RequestError, one_line, problem
from datablame.leaderboard import lds, records
from datablame.leaderboard.results import Result, entries_of, merged, results_of
from datablame.leaderboard.standings import Leaderboard, standings_of
from datablame.leaderboard.studies import Organism, kinds, run_all
from datablame.tables import Patching


def run(
    studies: Mapping[Organism, Study],
    out: Path,
    folder: Path,
    *,
    subsets: int,
    execution: Execution,
    progress: Progress,
) -> Leaderboard:
    """Run the studies of which `folder` has no record, each below `out`, and random subsets of the first; gather all.

    A study that fails is among the failures, and the others go on.

    Raises:
        RequestError: subsets cannot be trained as the study's headline is, a record is torn, or every study failed.
    """
    lds.check_subsets(next(iter(studies.values())), subsets)
    recorded = records.read(folder, studies)
    if recorded:
        progress.note(f"{len(recorded)} of {len(studies)} organisms are recorded in {folder / records.FOLDER}")

    def done(organism: Organism) -> None:
        records.write(folder, organism, _record(out, organism, studies[organism]))

    left = {organism: study for organism, study in studies.items() if organism not in recorded}
    failures = run_all(left, out, done=done, execution=execution, progress=progress)
    if subsets and _predictions(folder, studies, subsets) is None:
        finished = {organism: study for organism, study in studies.items() if organism not in failures}
        _measure_predictions(folder, finished, out, subsets, execution=execution, progress=progress)
    return gather(studies, out, folder, failures, subsets=subsets)


def gather(
    studies: Mapping[Organism, Study], out: Path, folder: Path, failures: Mapping[Organism, str], *, subsets: int
) -> Leaderboard:
    """The leaderboard of what is there: the records of `folder`, and finished run folders below `out`.

    Raises:
        RequestError: no study of the request is finished, or a record is torn.
    """
    recorded = records.read(folder, studies)
    for organism, study in studies.items():
        finished = organism not in recorded and organism not in failures
        if finished and Tables(out / str(organism)).one(Patching) is not None:
            recorded[organism] = _record(out, organism, study)
    if not recorded:
        raise RequestError(next(iter(failures.values()), problem("leaderboard", "nothing", out=out)))
    methods = list(dict.fromkeys(name for study in studies.values() for name in study.attribute.methods))
    results = []
    for organism in studies:
        rows = {row.method: row for row in recorded[organism].results} if organism in recorded else {}
        why = "it cannot be had for this kind" if organism in recorded else "the study is not finished"
        results += [rows.get(method) or Result(*organism, method, why=why) for method in methods]
    lds_of, scores = (_predictions(folder, studies, subsets) if subsets else None) or (None, {})
    first, known = next(iter(studies.values())), kinds()
    return Leaderboard(
        list(studies),
        {organism.kind: known[organism.kind].about for organism in studies},
        first.attribute.top_k,
        first.ks,
        results,
        standings_of(merged([record.entries for record in recorded.values()], methods), results, scores),
        {organism: one_line(why) for organism, why in failures.items()},
        lds_of,
        subsets,
    )


def _record(out: Path, organism: Organism, study: Study) -> records.Record:
    root = out / str(organism)
    return records.Record(records.key_of(study), entries_of(root), results_of(root, organism, study))


def _predictions(folder: Path, studies: Mapping[Organism, Study], subsets: int) -> tuple[Organism, lds.Scores] | None:
    """The LDS of the first organism of which it is recorded."""
    for organism, study in studies.items():
        if (scores := records.read_predictions(folder, organism, study, subsets)) is not None:
            return organism, scores
    return None


def _measure_predictions(
    folder: Path,
    studies: Mapping[Organism, Study],
    out: Path,
    subsets: int,
    *,
    execution: Execution,
    progress: Progress,
) -> None:
    """Measure and record the LDS of the first organism that has a run folder; of records alone there is none."""
    first = next((each for each in studies if Tables(out / str(each)).one(Patching) is not None), None)
    if first is None:
        progress.note(f"no LDS: no finished run of these organisms is below {out}")
        return
    scores = lds.datamodeling_scores(out / str(first), out, subsets, execution=execution, progress=progress)
    if scores:
        records.write(folder, first, records.Predictions(records.key_of(studies[first]), subsets, scores))
