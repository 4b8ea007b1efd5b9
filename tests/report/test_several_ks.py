"""Several K on the report's pages: the declared one decides, the others are shown beside it."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.report.fake_run import fake_study, reported, results_of, write_fake_run
from tests.report.rows import again
from tests.worlds import put

from datablame.report.findings import findings
from datablame.report.pages import text_tables
from datablame.report.results import Results
from datablame.tables import ArmTest, Patching

ARMS = ("after", "baseline", "a-a", "random", "bottom", "gradient", "activation")
ONCE = ("after", "baseline", "a-a")
KS = (2, 8, 14)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """A finished run at K = 2, 8 and 14, of which 2 decides: activation leaves least there, gradient at 14."""
    study = fake_study(k=list(KS), arms=list(ARMS), protocols=["retrain"], seeds=[0, 1, 2, 3])
    world = write_fake_run(tmp_path_factory.mktemp("doses"), study)
    results = results_of(world)
    assert results.patching is not None
    rates = {"gradient": {2: 0.26, 8: 0.14, 14: 0.02}, "activation": {2: 0.06, 8: 0.18, 14: 0.3}}
    tests = [replace(t, rate=rates[t.arm][t.k]) if t.arm in rates else t for t in results.tests]
    put(world.root, "patch", {ArmTest: tests, Patching: replace(results.patching, again=again(seeds=4))})
    return reported(world), results_of(world)


def sentences(results: Results, name: str) -> list[str]:
    return [finding.sentence for finding in findings(results) if finding.name == name]


def test_the_declared_k_stands_in_the_comparison_and_every_k_in_the_table_of_doses(run: tuple[Path, Results]) -> None:
    results = run[1]
    tests = results.tested("retrain")
    assert {test.arm: test.k for test in tests} == {arm: 0 if arm in ONCE else 2 for arm in ARMS}
    [compared, table] = text_tables(results)["patching"]
    assert len(compared.rows) == len(ARMS)
    assert table.header == ["arm", "K = 2", "K = 8", "K = 14"]
    assert [row[0] for row in table.rows] == [
        *("baseline (no removal)", "random", "bottom (ranked last)", "gradient", "activation")
    ]
    cells = {row[0]: row[1:] for row in table.rows}
    assert len(set(cells["baseline (no removal)"])) == 1
    for index, k in enumerate(KS):
        test = next(test for test in results.tested("retrain", k=k) if test.arm == "gradient")
        assert test.rate is not None
        assert test.to_random is not None
        assert cells["gradient"][index] == f"{100 * test.rate:.1f} % ({100 * test.to_random.difference:+.1f})"


def test_findings_name_the_winner_at_each_k_and_the_a_a_pair(run: tuple[Path, Results]) -> None:
    [doses] = sentences(run[1], "doses")
    assert doses.startswith("retrain: least is left by activation at K = 2 (")
    assert "gradient at K = 14 (" in doses
    assert doses.endswith("not the same at every K; only K = 2 was declared to decide.")
    [pair] = sentences(run[1], "A/A pair")
    assert pair.startswith("The baseline trained again on 4 other seeds (A/A) gives ")
    assert "permutation p = " in pair
    removals = sentences(run[1], "removal")
    assert not any("a-a flagged" in text or "bottom flagged" in text for text in removals)
    assert any("what gradient ranks last leaves" in text for text in removals)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"p": 0.01}, "more than chance gives, so that the seeds differ."),
        ({"p": None, "why_no_p": "few"}, "-10.0 points [-20.0, +0.0]; no p value: few."),
        ({"difference": None, "why_no_p": "no prompt was scored"}, "against 40.0 %: no prompt was scored."),
    ],
)
def test_an_a_a_pair_says_what_its_p_value_means_or_why_there_is_none(
    run: tuple[Path, Results], changes: dict[str, object], words: str
) -> None:
    assert run[1].patching is not None
    changed = replace(run[1], patching=replace(run[1].patching, again=again(**changes)))
    [pair] = sentences(changed, "A/A pair")
    assert pair.endswith(words)


def test_methods_that_leave_as_little_are_named_together(run: tuple[Path, Results]) -> None:
    level = [replace(t, rate=0.1) if t.arm in ("gradient", "activation") else t for t in run[1].tests]
    [doses] = sentences(replace(run[1], tests=level), "doses")
    both = "gradient or activation at K = {} (10.0 %)"
    words = f"{both.format(2)}, {both.format(8)} and {both.format(14)}, the same at every K; only K = 2 was"
    assert doses.startswith(f"retrain: least is left by {words}")


def test_the_deliverables_have_every_k(run: tuple[Path, Results]) -> None:
    root, held = run
    with (root / "patching_comparison.csv").open() as file:
        cells = {(row["arm"], row["k"]) for row in csv.DictReader(file)}
    assert cells == {(arm, str(k)) for arm in ARMS for k in ((0,) if arm in ONCE else KS)}
    results = json.loads((root / "final_results.json").read_text())
    assert (results["study"]["headline"]["k"], results["study"]["ks"]) == (2, list(KS))
    assert results["study"]["intervention"] == "remove"
    assert held.patching is not None
    assert held.patching.again is not None
    assert results["aa"] == asdict(held.patching.again)
    for page in ("writeup/report.md", "comparison.md", "index.html"):
        assert "dose and response" in (root / page).read_text(), page


@pytest.mark.parametrize(
    ("intervention", "words"),
    [
        ("swap", "exchanging the answers of"),
        ("drop-source", "removing the sources of"),
    ],
)
def test_the_words_say_what_was_done(run: tuple[Path, Results], intervention: str, words: str) -> None:
    study = run[1].study
    patch = study.patch.model_copy(update={"intervention": intervention})
    changed = replace(run[1], study=study.model_copy(update={"patch": patch}))
    texts = sentences(changed, "removal")
    assert any(text.startswith(f"retrain: {words} ") and "what gradient flagged leaves" in text for text in texts)
