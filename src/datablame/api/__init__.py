"""The Python interface: a study, its run, and what the run found, as pandas frames and figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq

from datablame.config.file import load_study
from datablame.config.schema import PRESENTATION, Study
from datablame.engine.execute import Progress, Silent
from datablame.engine.files import read_json
from datablame.engine.phase import Tables
from datablame.errors import RequestError
from datablame.pipeline.checks import load
from datablame.pipeline.execution import execution_of
from datablame.pipeline.phases import open_run, status
from datablame.pipeline.run import run_study
from datablame.report.findings import findings
from datablame.report.phase import overview_drawn
from datablame.report.results import Results, read_results
from datablame.report.verdict import verdict
from datablame.report.wording import environment
from datablame.tables import ArmRate, ArmTest, Document, Flag, Rate, ScanSample, Score, SurfaceSample, path_of
from datablame.world import World
from datablame.world.world import load as load_world

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Verdict:
    """What a study shows, as final_results.json has it."""

    label: str
    headline: str
    """What was found, in one sentence."""
    reasons: tuple[str, ...]
    numbers: dict[str, Any]

    def __str__(self) -> str:
        """The label and the headline."""
        return f"{self.label}. {self.headline}"


@dataclass(frozen=True)
class DocumentView:
    """A document of the pool, and how far up each method ranks it."""

    document: Document
    planted: bool | None
    """None where nobody knows."""
    ranks: pd.DataFrame
    """`method, behaviour, score, rank`."""
    removed_by: tuple[str, ...]
    """Methods that flagged it at the K that decides."""


@dataclass(frozen=True)
class Figures:
    """The figures of a run, as matplotlib draws them."""

    run: "Run"

    def rates(self) -> "Figure":
        """Harmful rate against alpha."""
        from datablame.report.figures import rates_figure

        return rates_figure(self.run.results)

    def patching(self) -> "Figure":
        """What is left of the behaviour after each arm's removal."""
        from datablame.report.figures import patching_figure

        return patching_figure(self.run.results)

    def overview(self) -> "Figure":
        """The study in four panels."""
        results = self.run.results
        return overview_drawn(results, verdict(results), findings(results))


class Run:
    """A run folder, whatever of it is finished; nothing is read before it is asked for."""

    def __init__(self, root: Path) -> None:
        if not (root / "study.yaml").is_file():
            raise RequestError(f"{root} holds no study.yaml; datablame run STUDY --out {root} begins one")
        self.root = root

    @cached_property
    def study(self) -> Study:
        """The study as it was given."""
        return load_study(str(self.root / "study.yaml"))

    @cached_property
    def world(self) -> World:
        """Everything that the run rests on: the study as resolved, all prompts, the pool."""
        return load_world(self.root)

    @cached_property
    def results(self) -> Results:
        """All tables as typed rows, to be shown as the study in the folder says by now."""
        shown = {name: getattr(self.study, name) for name in PRESENTATION}
        world = replace(self.world, study=self.world.study.model_copy(update=shown))
        return read_results(world, Tables(self.root))

    @property
    def status(self) -> dict[str, str]:
        """How far each phase is: done, stale, begun or missing."""
        return dict(status(self.study, self.root).states)

    @property
    def scan_samples(self) -> pd.DataFrame:
        """The outputs of the scan with their labels."""
        return self.table(ScanSample)

    @property
    def samples(self) -> pd.DataFrame:
        """The outputs of the surface phase with their labels."""
        return self.table(SurfaceSample)

    @property
    def rates(self) -> pd.DataFrame:
        """Harmful rates by prompt, behaviour, split and alpha, with Wilson intervals."""
        return self.table(Rate)

    @property
    def flagged(self) -> pd.DataFrame:
        """What each method flagged at each K: `method, k, behaviour, doc_id`."""
        return self.table(Flag)

    @property
    def arm_rates(self) -> pd.DataFrame:
        """Every measured cell of every arm, as in patching_comparison.csv."""
        return self.table(ArmRate)

    def scores(self, method: str) -> pd.DataFrame:
        """One method's documents by behaviour, the most responsible first: `behaviour, doc_id, score, rank`.

        Raises:
            RequestError: the study has no such method.
        """
        if method not in self.study.attribute.methods:
            known = ", ".join(self.study.attribute.methods)
            raise RequestError(f"method = {method} is none of this study's; choose one of {known}")
        frame = self.table(Score, method=method)
        return frame.drop(columns="method").sort_values(["behaviour", "rank"], ignore_index=True)

    @property
    def arms(self) -> pd.DataFrame:
        """Every comparison of an arm: rate, interval, differences to random and baseline, p."""
        return pd.json_normalize(self.table(ArmTest).to_dict("records"))

    @property
    def verdict(self) -> Verdict | None:
        """What the study shows; None before it is reported."""
        path = self.root / "final_results.json"
        if not path.is_file():
            return None
        values = read_json(path)["verdict"]
        return Verdict(values["label"], values["headline"], tuple(values["reasons"]), values["numbers"])

    @property
    def figures(self) -> Figures:
        """Figures to show or to save: `run.figures.rates()`."""
        return Figures(self)

    def document(self, doc_id: str) -> DocumentView:
        """A document of the pool with its ranks.

        Raises:
            RequestError: the pool has no such document.
        """
        pool, truth = self.world.pool, self.world.truth
        if doc_id not in pool.row_of:
            raise RequestError(f"document = {doc_id} is not in the pool of {self.root}; look it up in run.flagged")
        [document] = pool.documents([pool.row_of[doc_id]])
        ranks = self.table(Score, doc_id=doc_id).drop(columns="doc_id")
        flags = self.flagged
        removed = flags[(flags.doc_id == doc_id) & (flags.k == self.study.attribute.top_k)].method.unique()
        planted = None if truth is None else any(doc_id in ids for ids in truth.values())
        return DocumentView(document, planted, ranks, tuple(removed))

    def table(self, row: type, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """Any table of `datablame.tables` as a frame, only rows with `where`'s values; a JSON table has one row.

        Raises:
            RequestError: the phase that writes it has not run.
        """
        path = path_of(row, self.root)
        if not path.is_file():
            raise RequestError(f"{self.root} has no {row.__name__} rows yet; run its phase {path.parent.name} first")
        if path.suffix == ".json":
            return pd.DataFrame([read_json(path)])
        filters = [(name, "=", value) for name, value in where.items()] or None
        frame: pd.DataFrame = pq.read_table(path, columns=columns, filters=filters).to_pandas()
        return frame

    def __repr__(self) -> str:
        """The folder, how far it is, and the verdict."""
        return f"Run({str(self.root)!r}, {self.verdict or 'not reported yet'})"

    def _repr_html_(self) -> str:
        """The verdict, the arms where it comes from, and where the page lies."""
        arms = None
        if (verdict := self.verdict) is not None:
            frame = self.table(ArmTest, headline=True)[["arm", "seeds", "rate", "low", "high", "p_holm"]]
            arms = frame.sort_values("rate").to_html(index=False, float_format="{:.3f}".format)
        return environment().get_template("run.html.j2").render(run=self, verdict=verdict, arms=arms)


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
    devices: Sequence[int] = (),
    max_cost_usd: float | None = None,
    progress: Progress | None = None,
) -> Run:
    """Bring a study's run folder up to date and open it; what is there already is not done again.

    Args:
        study: as `study` gives it, or what it takes.
        out: the run folder; `runs/NAME` if left out.
        until: the last phase to run.
        workers: processes; one a core, or one a graphics card, if left out. Results stay the same.
        devices: graphics cards to use, as the driver numbers them; all of them if left out.
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
    execution = execution_of(opened, workers=workers, devices=tuple(devices))
    run_study(opened, root, execution=execution, progress=progress or Silent(), until=until, max_cost_usd=max_cost_usd)
    return Run(root)


def open(folder: str | Path) -> Run:
    """A run folder that is there, whatever of it is finished.

    Raises:
        RequestError: the folder holds no run of this version of datablame.
    """
    return Run(Path(folder))
