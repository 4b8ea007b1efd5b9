"""A study read, run and opened from Python."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datablame.api.results import Run
from datablame.config.schema import Study
from datablame.engine.execute import Progress, Silent, default_execution
from datablame.pipeline.checks import load
from datablame.pipeline.phases import open_run
from datablame.pipeline.run import run_study


def study(source: str = "organism", overrides: Mapping[str, Any] | None = None) -> Study:
    """The study of a YAML file or a preset, with keys such as `{"surface.samples": 20}` laid over its own.

    Raises:
        RequestError: there is no such file or preset, or a key or value cannot be.
    """
    return load(source, [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in (overrides or {}).items()])


def run(
    study: Study | str,
    *,
    out: str | Path | None = None,
    until: str | None = None,
    workers: int | None = None,
    max_cost_usd: float | None = None,
    progress: Progress | None = None,
) -> Run:
    """Bring a study's run folder up to date and open it; what is there already is not done again.

    Args:
        study: as `study` gives it, or what it takes.
        out: the run folder; `runs/NAME` if left out.
        until: the last phase to run.
        workers: processes; one a core if left out. Results stay the same.
        max_cost_usd: the most that this run folder may have paid for answers of a judge.
        progress: hears of every long step; nobody if left out.

    Raises:
        RequestError: the study or its data cannot be used, or the folder holds another study.
        BudgetError: the next call to a judge might cost more than may be spent.
        PhaseError: a phase failed; what was finished stays.
    """
    loaded = load(study) if isinstance(study, str) else study
    root = Path(out) if out is not None else Path("runs") / loaded.name
    opened = open_run(root, loaded, resume=True)
    execution = default_execution()
    if workers is not None:
        execution = execution._replace(workers=workers)
    run_study(opened, root, execution=execution, progress=progress or Silent(), until=until, max_cost_usd=max_cost_usd)
    return Run(root)


def open(folder: str | Path) -> Run:
    """A run folder that is there, whatever of it is finished.

    Raises:
        RequestError: the folder holds no run of this version of datablame.
    """
    return Run(Path(folder))
