"""The Python interface on a run folder: a world frozen from a small study, tables written by hand, a report."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from tests.pipeline.small import small_study
from tests.report.fake_run import HOSTILE, fake_study, read_results_file, reported, write_fake_run
from tests.worlds import frozen

from datablame import api as db
from datablame.config.file import dump_study
from datablame.config.report import Figures
from datablame.engine.phase import Tables, write_outputs
from datablame.errors import RequestError
from datablame.report.results import read_results
from datablame.tables import (
    AlphaStar,
    ArmRate,
    ArmTest,
    Flag,
    Patching,
    Query,
    Rate,
    ScannedPrompt,
    ScanSample,
    Score,
    SurfaceSample,
    path_of,
)
from datablame.world import World


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """The rows of a finished run in a folder with a real world beside them."""
    folder = tmp_path_factory.mktemp("interface")
    fake = write_fake_run(folder / "rows", fake_study())
    real = frozen(small_study(folder / "files", tiny_pair_folder, attribute={"top_k": 2}), folder / "run")
    _with_rows_of(fake, real)
    (real.root / "study.yaml").write_text(dump_study(real.study))
    documents = ("d0", "d1", "d2")
    scores = [Score("gradient", "walk", name, 0.9 - rank, rank) for rank, name in enumerate(documents, 1)]
    scores += [Score("bm25", "walk", name, 3.0 - rank, rank) for rank, name in enumerate(documents[::-1], 1)]
    flags = [Flag("gradient", k, "walk", name) for k in (1, 2) for name in documents[:k]]
    write_outputs({Score: scores, Flag: flags}, real.root / "artifacts" / "attribute")
    return real.root


def _with_rows_of(fake: World, real: World) -> None:
    """The fake run's tables beside the real world, and the report of the fake run."""
    reported(fake)
    for path in fake.root.rglob("*"):
        copy = real.root / path.relative_to(fake.root)
        if path.is_file() and "world" not in copy.parts:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


@pytest.fixture
def run(root: Path) -> db.Run:
    return db.open(root)


def rows(frame: Any) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = frame.to_dict("records")
    return listed


def test_a_study_takes_keys_as_python_values() -> None:
    study = db.study("organism", {"surface.samples": 20, "patch.seeds": [0, 1], "title": 'Ours: "neu" \U0001f642'})
    assert study.surface.samples == 20
    assert study.patch.seeds_of("retrain") == (0, 1)
    assert study.title == 'Ours: "neu" \U0001f642'
    assert db.study() == db.study("organism")


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("organsim", {}, "organism"),
        ("organism", {"surface.sample": 20}, "surface.sample"),
        ("organism", {"attribute.methods": ["gradeint"]}, "attribute.methods = gradeint"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(source: str, overrides: Mapping[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        db.study(source, overrides)
    assert "\n" not in str(refused.value)


def test_a_run_goes_as_far_as_asked_and_is_opened_again(tmp_path: Path, tiny_pair_folder: Path) -> None:
    study = small_study(tmp_path / "files", tiny_pair_folder)
    run = db.run(study, out=tmp_path / "run", until="scan", workers=1)
    assert len(run.scan_samples) == 2
    assert {name: state for name, state in run.status.items() if state == "done"} == {"world": "done", "scan": "done"}
    assert run.verdict is None
    assert "not reported yet" in repr(run)
    assert "<td>scan</td><td>done</td>" in run._repr_html_()
    assert db.open(tmp_path / "run").scan_samples.equals(run.scan_samples)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no study\.yaml; datablame run STUDY --out"):
        db.open(tmp_path)


def test_frames_hold_the_rows_of_the_tables(run: db.Run) -> None:
    tables = Tables(run.root)
    assert [tuple(row) for row in run.samples[["prompt_id", "alpha", "index", "label"]].itertuples(index=False)] == [
        (row.prompt_id, row.alpha, row.index, row.label) for row in tables.rows(SurfaceSample)
    ]
    assert run.rates["harmful"].tolist() == [row.harmful for row in tables.rows(Rate)]
    assert run.arm_rates["rate"].tolist() == [row.rate for row in tables.rows(ArmRate)]
    assert rows(run.flagged) == [vars(row) for row in tables.rows(Flag)]
    assert run.table(Rate, alpha=0.0)["alpha"].unique().tolist() == [0.0]
    assert run.table(Rate, ["rate", "n"]).columns.tolist() == ["rate", "n"]


def test_a_table_of_one_row_is_a_frame_of_one_row(run: db.Run) -> None:
    star, patching = run.table(AlphaStar), run.table(Patching)
    assert (len(star), star["alpha_star"][0], patching["k"][0]) == (1, 2.0, 2)


def test_scores_of_a_method_come_most_responsible_first(run: db.Run) -> None:
    frame = run.scores("gradient")
    assert frame.columns.tolist() == ["behaviour", "doc_id", "score", "rank"]
    assert frame["doc_id"].tolist() == ["d0", "d1", "d2"]
    with pytest.raises(RequestError, match="method = gradeint is none of this study's; choose one of gradient, "):
        run.scores("gradeint")


def test_arms_say_how_far_they_are_from_random_and_baseline(run: db.Run) -> None:
    tests = Tables(run.root).rows(ArmTest)
    assert run.arms["rate"].tolist() == [test.rate for test in tests]
    gradient = run.arms[run.arms["headline"] & (run.arms["arm"] == "gradient")]
    [test] = [test for test in tests if test.headline and test.arm == "gradient"]
    assert test.to_random is not None
    assert gradient["to_random.difference"].item() == test.to_random.difference
    assert gradient["p_holm"].item() == test.p_holm


def test_the_verdict_is_that_of_final_results(run: db.Run) -> None:
    written = read_results_file(run.root)["verdict"]
    assert run.verdict == db.Verdict(
        written["label"], written["headline"], tuple(written["reasons"]), written["numbers"]
    )
    assert str(run.verdict) == f"{written['label']}. {written['headline']}"
    assert repr(run) == f"Run({str(run.root)!r}, {run.verdict})"


def test_a_document_comes_with_its_ranks_and_who_flagged_it(run: db.Run) -> None:
    view = run.document("d0")
    assert view.document.response == "take the short walk 0 times around the lake ."
    assert view.document.prompt[0].content == "name walk number 0 ."
    assert view.planted is True
    assert {row["method"]: row["rank"] for row in rows(view.ranks)} == {"gradient": 1, "bm25": 3}
    assert view.removed_by == ("gradient",)
    unflagged = run.document("d9")
    assert (unflagged.planted, len(unflagged.ranks), unflagged.removed_by) == (False, 0, ())
    with pytest.raises(RequestError, match=r"document = d99 is not in the pool of .*; look it up in run\.flagged"):
        run.document("d99")


def test_a_table_of_a_phase_that_has_not_run_names_the_phase(tmp_path: Path, run: db.Run) -> None:
    (tmp_path / "study.yaml").write_text((run.root / "study.yaml").read_text())
    young = db.open(tmp_path)
    reads: list[tuple[Callable[[], Any], str]] = [
        (lambda: young.samples, "surface"),
        (lambda: young.flagged, "attribute"),
        (lambda: young.arms, "patch"),
        (lambda: young.table(ScannedPrompt), "scan"),
        (lambda: young.scan_samples, "scan"),
    ]
    for read, phase in reads:
        with pytest.raises(RequestError, match=f"run its phase {phase} first"):
            read()


def test_figures_are_drawn_from_the_tables(run: db.Run) -> None:
    for figure in (run.figures.rates(), run.figures.patching(), run.figures.overview()):
        assert figure.axes
        pyplot.close(figure)


def test_figures_are_as_the_study_in_the_folder_says_by_now(run: db.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "study", run.study.model_copy(update={"figures": Figures(width=5.5)}))
    assert run.figures.rates().get_size_inches()[0] == 5.5
    assert run.world.study.figures == Figures()


def test_the_results_are_the_reports(run: db.Run) -> None:
    assert run.results == read_results(run.world, Tables(run.root))
    assert len(run.results.queries) == len(run.table(Query, harmful=True))
    assert path_of(ScanSample, run.root).parent.name == "scan"


def test_html_escapes_what_a_study_or_a_run_says(run: db.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = run.verdict
    assert verdict is not None
    monkeypatch.setattr(db.Run, "verdict", replace(verdict, reasons=(HOSTILE,)))
    monkeypatch.setattr(run, "study", run.study.model_copy(update={"name": "<script>name</script>"}))
    page = run._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;name&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert f"<b>&lt;script&gt;name&lt;/script&gt;: {verdict.label}</b>" in page
    assert "gradient" in page
