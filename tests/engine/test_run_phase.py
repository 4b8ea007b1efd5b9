"""A phase runs beside its last tables: whatever kills it, a resumed run ends with the bytes of one that was not."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.engine.files import read_json, write_json
from datablame.engine.phase import Outputs, Phase, Tables, Work, bring_up_to_date, state_of, write_outputs
from datablame.engine.run_folder import read_timings
from datablame.errors import PhaseError
from datablame.judge.choice import Choice
from datablame.tables import AlphaStar, Flag, Rate, ScannedPrompt, ScanSample, rows_of, schema_of
from datablame.world import World

ONE = Execution(workers=1, threads=1)
ITEMS = ("a", "b", "c")


def world_of(root: Path, **study: Any) -> World:
    """A world of no models, whose parts are those of its study."""
    values: dict[str, Any] = {
        "name": "small",
        "models": {"before": "b", "after": "a", "device": "cpu"},
        "data": {"path": "pool.jsonl"},
        "behaviours": [{"id": "dose", "description": "x"}],
        "prompts": {
            "attribution": [{"id": name, "behaviour": "dose", "text": name} for name in ITEMS],
            "held_out": [{"id": "h", "behaviour": "dose", "text": "two"}],
        },
        **study,
    }
    made = Study.model_validate(values)
    assert made.models is not None
    assert made.data is not None
    identities: dict[str, Any] = {"models": {}, "data": {}, "files": {}}
    return World(root, made, (), None, Choice("keywords", "keywords"), identities)


def scan(world: World, tables: Tables, work: Work) -> Outputs:
    """Two tables, a journal, a file of its own."""
    texts = work.journal.read()
    for item in ITEMS:
        if item not in texts:
            work.journal.append(item, item * 3)
    (work.out / "adapters").mkdir(exist_ok=True)
    (work.out / "adapters" / "a.bin").write_bytes(b"weights")
    texts = work.journal.read()
    count = world.study.scan.samples
    return {
        ScanSample: [
            ScanSample(item, "dose", "attribution", 0.0, i, texts[item], (i,), "stop")
            for item in ITEMS
            for i in range(count)
        ],
        ScannedPrompt: [ScannedPrompt(item, "dose", (0.0,), (None,), 0.0, item == "a", "first") for item in ITEMS],
    }


def surface(world: World, tables: Tables, work: Work) -> Outputs:
    """A table of many rows and one of one row, from the table before."""
    n = len(tables.rows(ScanSample, prompt_id="a"))
    rate = Rate("a", "dose", "attribution", 0.0, n, 0, 0, n, 0, 0, 0.0, 0.0, 1.0)
    return {Rate: [rate], AlphaStar: AlphaStar(1.0, "the largest", {"0": 1.0}, None)}


def deliver(world: World, tables: Tables, root: Path) -> None:
    write_json(root / "phase2_results.json", [row.n for row in tables.rows(Rate)])


def report(world: World, tables: Tables, work: Work) -> Outputs:
    write_json(work.root / "final_results.json", tables.of(AlphaStar).alpha_star)
    write_json(work.root / "writeup" / "report.json", world.study.title)
    return {}


SCAN = Phase("scan", 1, ("scan",), (), scan)
SURFACE = Phase("surface", 1, ("surface",), (SCAN,), surface, deliver)
DELIVERS = ("phase2_results.json", "final_results.json", "writeup/report.json")
REPORT = Phase("report", 1, ("everything", "registration"), (SCAN, SURFACE), report, delivers=DELIVERS)
PHASES = (SCAN, SURFACE, REPORT)


def ran(world: World, phases: tuple[Phase, ...] = PHASES, execution: Execution = ONE) -> list[str]:
    """Bring a run up to date and say which phases ran."""
    reached: list[tuple[str, bool]] = []
    bring_up_to_date(
        world,
        phases,
        execution=execution,
        progress=Silent(),
        reached=lambda phase, skipped: reached.append((phase.name, skipped)),
    )
    return [name for name, skipped in reached if not skipped]


def contents(root: Path) -> dict[str, bytes]:
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "timings.jsonl"}


def states(world: World, phases: tuple[Phase, ...] = PHASES) -> list[str]:
    return [state_of(phase, world) for phase in phases]


def failing(phase: Phase, **changes: Any) -> Phase:
    def run(world: World, tables: Tables, work: Work) -> Outputs:
        work.journal.append("a", "aaa")
        raise PhaseError("no")

    return replace(phase, run=run, **changes)


def test_a_run_leaves_tables_files_deliverables_and_no_scratch(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    assert ran(world) == ["scan", "surface", "report"]
    assert sorted(contents(tmp_path)) == [
        "artifacts/report/done.json",
        "artifacts/scan/adapters/a.bin",
        "artifacts/scan/done.json",
        "artifacts/scan/prompts.parquet",
        "artifacts/scan/samples.parquet",
        "artifacts/surface/alpha_star.json",
        "artifacts/surface/done.json",
        "artifacts/surface/rates.parquet",
        "final_results.json",
        "phase2_results.json",
        "writeup/report.json",
    ]
    assert read_json(tmp_path / "phase2_results.json") == [10]
    assert set(read_timings(tmp_path)) == {"phase/scan", "phase/surface", "phase/report"}
    assert ran(world) == []


class Killed(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def killed_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The file system obeys so many times: each fsync, rename and removal is an instant at which a kill may come."""
    left = [calls]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*words, **options)

        return call

    with monkeypatch.context() as patched:
        for where, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            patched.setattr(where, name, counted(getattr(where, name)))
        yield left


@pytest.mark.parametrize("again", [False, True], ids=["first", "over an older run"])
def test_a_kill_at_any_instant_and_a_resume_end_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    changed: dict[str, Any] = {"scan": {"samples": 3}, "title": "another"}
    # What costs most and changes no byte.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("datablame.engine.phase.free_memory", lambda: None)
    if again:
        ran(world_of(tmp_path / "calm"))
        shutil.copytree(tmp_path / "calm", tmp_path / "older")
    ran(world_of(tmp_path / "calm", **changed))
    calls = 0
    finished = False
    while not finished:
        root = tmp_path / f"killed-{calls}"
        if again:
            shutil.copytree(tmp_path / "older", root)
        with killed_after(calls, monkeypatch):
            try:
                ran(world_of(root, **changed))
                finished = True
            except Killed:
                pass
        scanned = root / "artifacts/scan/samples.parquet"
        assert not again or scanned.exists() or (root / "artifacts/scan.old/samples.parquet").exists()
        ran(world_of(root, **changed))
        assert contents(root) == contents(tmp_path / "calm"), calls
        assert ran(world_of(root, **changed)) == []
        calls += 1
    assert calls > 30


def test_what_the_journal_holds_is_not_done_again(tmp_path: Path) -> None:
    done: list[str] = []

    def counting(world: World, tables: Tables, work: Work) -> Outputs:
        for item in ITEMS:
            if item not in work.journal.read():
                done.append(item)
                work.journal.append(item, item * 3)
                if len(done) == 2:
                    raise PhaseError("killed")
        return scan(world, tables, work)

    phase = replace(SCAN, run=counting)
    with pytest.raises(PhaseError):
        ran(world_of(tmp_path), (phase,))
    assert ran(world_of(tmp_path), (phase,)) == ["scan"]
    assert done == ["a", "b", "c"]


def test_a_finished_phase_stays_until_its_replacement_is_whole(tmp_path: Path) -> None:
    ran(world_of(tmp_path))
    before = contents(tmp_path)
    changed = world_of(tmp_path, scan={"samples": 3})
    with pytest.raises(PhaseError):
        ran(changed, (failing(SCAN),))
    assert states(changed) == ["stale", "done", "stale"]
    kept = contents(tmp_path)
    assert {name: kept[name] for name in before} == before
    assert len(Tables(tmp_path).rows(ScanSample)) == 30
    # Back to the first study, nothing runs and what was begun goes.
    assert ran(world_of(tmp_path)) == []
    assert contents(tmp_path) == before
    assert ran(changed) == ["scan", "surface", "report"]
    assert len(Tables(tmp_path).rows(ScanSample)) == 9


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"title": "another"}, ["report"]),
        ({"surface": {"samples": 7}}, ["surface", "report"]),
        ({"scan": {"samples": 3}}, ["scan", "surface", "report"]),
        # The scan's tables are the same: what reads them does not run.
        ({"scan": {"focus": 2}}, ["scan", "report"]),
    ],
)
def test_a_changed_part_of_the_world_runs_what_reads_it(
    tmp_path: Path, changes: dict[str, Any], again: list[str]
) -> None:
    ran(world_of(tmp_path))
    assert ran(world_of(tmp_path, **changes)) == again


def test_a_new_version_of_a_phase_runs_again(tmp_path: Path) -> None:
    ran(world_of(tmp_path), (SCAN,))
    assert ran(world_of(tmp_path), (replace(SCAN, version=2),)) == ["scan"]


def test_a_registration_runs_the_report_again(tmp_path: Path) -> None:
    ran(world_of(tmp_path))
    (tmp_path / "preregistration.json").write_text("{}")
    assert ran(world_of(tmp_path)) == ["report"]
    (tmp_path / "manifest.json").write_text("{}")
    assert ran(world_of(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("artifacts/scan/samples.parquet", "scan"),
        ("artifacts/scan/adapters/a.bin", "scan"),
        ("artifacts/surface/alpha_star.json", "surface"),
        ("final_results.json", "report"),
        ("writeup/report.json", "report"),
    ],
)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"other")])
def test_a_changed_or_missing_output_runs_its_phase_again_and_is_named(
    tmp_path: Path, name: str, again: str, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    world = world_of(tmp_path)
    ran(world)
    before = contents(tmp_path)
    damage(tmp_path / name)
    damaged = contents(tmp_path)
    assert {"scan": 0, "surface": 1, "report": 2}[again] == states(world).index("stale")
    assert contents(tmp_path) == damaged, "looking changes nothing"
    with caplog.at_level(logging.WARNING):
        assert ran(world) == [again]
    assert caplog.messages == [f"{again} runs again: {name} is missing or was changed"]
    assert contents(tmp_path) == before


def test_states_tell_missing_from_begun(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    assert states(world) == ["missing"] * 3
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PhaseError):
        ran(world, (failing(SCAN),))
    assert states(world) == ["begun", "missing", "missing"]
    ran(world)
    assert states(world) == ["done"] * 3
    assert states(world_of(tmp_path, scan={"samples": 3})) == ["stale", "done", "stale"]


def test_a_phase_whose_tables_before_are_missing_says_which(tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match="surface needs scan, which is not done; run with --resume"):
        ran(world_of(tmp_path), (SURFACE,))


def test_a_new_start_is_told_from_going_on(tmp_path: Path) -> None:
    starts: list[tuple[str, bool]] = []
    for phase, samples in ((failing(SCAN), 1), (failing(SCAN), 2), (failing(SCAN), 2), (SCAN, 2), (SCAN, 2)):
        with contextlib.suppress(PhaseError):
            bring_up_to_date(
                world_of(tmp_path, scan={"samples": samples}),
                (phase,),
                execution=ONE,
                progress=Silent(),
                before=lambda phase, new: starts.append((phase.name, new)),
            )
    assert starts == [("scan", True), ("scan", True), ("scan", False), ("scan", False)]


def test_a_card_has_one_worker_and_the_world_says_how_many_threads(tmp_path: Path) -> None:
    executions: list[Execution] = []

    def run(world: World, tables: Tables, work: Work) -> Outputs:
        executions.append(work.execution)
        return {}

    for name, device in (("one", "cpu"), ("two", "cuda")):
        models = {"before": "b", "after": "a", "device": device}
        world = replace(world_of(tmp_path / name, models=models), threads=2)
        ran(world, (replace(SCAN, run=run),), Execution(4, 1))
    assert executions == [Execution(4, 2), Execution(1, 2)]


def test_a_table_made_part_by_part_is_whole_or_what_it_was(tmp_path: Path) -> None:
    def parts(n: int, fails: bool = False) -> Iterator[pa.Table]:
        for number in range(n):
            columns = [["gradient"], [20], ["dose"], [f"doc-{number}"]]
            yield pa.table(columns, schema=schema_of(Flag))
        if fails:
            raise PhaseError("no more")

    path, flags = tmp_path / "flags.parquet", [Flag("gradient", 20, "dose", f"doc-{number}") for number in range(3)]
    write_outputs({Flag: parts(3)}, tmp_path)
    assert rows_of(path, Flag) == flags
    with pytest.raises(PhaseError, match="no more"):
        write_outputs({Flag: parts(2, fails=True)}, tmp_path)
    assert rows_of(path, Flag) == flags
    write_outputs({Flag: parts(0)}, tmp_path)
    assert rows_of(path, Flag) == []
