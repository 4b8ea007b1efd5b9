"""From a request to a leaderboard: studies brought up to date, what they found gathered."""

from collections.abc import Mapping
from pathlib import Path

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress
from datablame.engine.phase import Tables
from datablame.errors import RequestError, one_line, problem
from datablame.leaderboard import lds
from datablame.leaderboard.results import Result, entries_of, results_of
from datablame.leaderboard.standings import Leaderboard, standings_of
from datablame.leaderboard.studies import Organism, kinds, run_all
from datablame.tables import Patching


def run(
    studies: Mapping[Organism, Study], out: Path, *, subsets: int, execution: Execution, progress: Progress
) -> Leaderboard:
    """Bring the run folder of every study below `out` up to date, and random subsets of the first one; gather all.

    A study that fails is among the failures, and the others go on.

    Raises:
        RequestError: subsets cannot be trained as the study's headline is, or every study failed.
    """
    lds.check_subsets(next(iter(studies.values())), subsets)
    failures = run_all(studies, out, execution=execution, progress=progress)
    return gather(studies, out, failures, subsets=subsets, execution=execution, progress=progress)


def gather(
    studies: Mapping[Organism, Study],
    out: Path,
    failures: Mapping[Organism, str],
    *,
    subsets: int,
    execution: Execution,
    progress: Progress,
    measure: bool = True,
) -> Leaderboard:
    """The leaderboard of what is there; without `measure` nothing is trained.

    Raises:
        RequestError: no study of the request is finished.
    """
    roots = {organism: out / str(organism) for organism in studies}
    finished = (each for each in studies if Tables(roots[each]).one(Patching) is not None)
    done = [organism for organism in finished if organism not in failures]
    if not done:
        raise RequestError(next(iter(failures.values()), problem("leaderboard", "nothing", out=out)))
    methods = list(dict.fromkeys(name for study in studies.values() for name in study.attribute.methods))
    results = [
        row
        for organism, study in studies.items()
        for row in (
            results_of(roots[organism], organism, study, methods)
            if organism in done
            else [Result(*organism, method, why="the study is not finished") for method in methods]
        )
    ]
    scores: lds.Scores = {}
    if subsets:
        scores = lds.datamodeling_scores(
            roots[done[0]], out, subsets, execution=execution, progress=progress, measure=measure
        )
    first, known = next(iter(studies.values())), kinds()
    return Leaderboard(
        list(studies),
        {organism.kind: known[organism.kind].about for organism in studies},
        first.attribute.top_k,
        first.ks,
        results,
        standings_of(entries_of([roots[organism] for organism in done], methods), results, scores),
        {organism: one_line(why) for organism, why in failures.items()},
        done[0] if scores else None,
        subsets,
    )
