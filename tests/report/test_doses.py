"""Several K on the report's pages and pictures: the declared one decides, the others are shown beside it."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datablame.engine.run_folder import Inputs, write_json, write_table
from datablame.patch.compare import again, compared, comparison
from datablame.report.artifacts import Artifacts, read_artifacts
from datablame.report.findings import findings
from datablame.report.run import run
from datablame.report.tables import dose_tables, patching_table

Rows = list[dict[str, Any]]

ARMS = {
    "untrained": 0.3,
    "baseline": 0.3,
    "a-a": 0.31,
    "random": 0.3,
    "bottom": 0.3,
    "gradient": 0.1,
    "activation": 0.2,
}
ONCE = ("untrained", "baseline", "a-a")


def patched(ks: tuple[int, ...], seeds: int = 4, *, alpha: float = 1.0, k: int = 2) -> tuple[Rows, Rows]:
    """(tests, table): gradient falls with K, activation most at the smallest."""
    random = np.random.default_rng(3)
    outputs = []
    for arm, level in ARMS.items():
        for own in (0,) if arm in ONCE else ks:
            share = {"gradient": 0.3 - 0.02 * own, "activation": 0.02 + 0.02 * own}.get(arm, level)
            for seed in (0,) if arm == "untrained" else range(seeds):
                about = {"arm": arm, "protocol": "none" if arm == "untrained" else "retrain", "k": own}
                for prompt in ("dose-h0", "dose-h1"):
                    cell = {**about, "seed": seed, "behaviour": "dose", "prompt_id": prompt, "split": "held-out"}
                    outputs += [
                        {**cell, "alpha": alpha, "label": "harmful" if draw < share else "refused"}
                        for draw in random.random(60)
                    ]
    table = comparison(outputs)
    return compared(table, list(ARMS), ("retrain", k, alpha), 0, 0.2), table


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifacts]:
    """A finished run at K = 2, 8 and 14, of which 2 decides, and what the report reads of it."""
    from tests.report.fake_run import fake_study, write_fake_run

    from datablame.engine.execute import Execution, Silent

    root = tmp_path_factory.mktemp("doses")
    study = fake_study(k=[2, 8, 14], arms=list(ARMS), protocols=["retrain"], seeds=[0, 1, 2, 3])
    inputs = write_fake_run(root, study)
    tests, table = patched((2, 8, 14), alpha=2.0)
    out = root / "artifacts" / "patch"
    write_table(out / "comparison.parquet", table)
    about = {"alpha": 2.0, "alpha_star_found": True, "k": 2, "ks": [2, 8, 14], "skipped_arms": [], "aa": again(tests)}
    write_json(out / "tests.json", {**about, "rows": tests})
    run(study, inputs, root / "artifacts" / "report", Execution(1, 1), Silent())
    return root, read_artifacts(study, Inputs(root, lambda what, key, seconds: None))


def test_the_declared_k_stands_in_the_comparison_and_every_k_in_the_table_of_doses(
    found: tuple[Path, Artifacts],
) -> None:
    _, artifacts = found
    rows = artifacts.tested(protocol="retrain")
    assert {arm: row["k"] for arm, row in rows.items()} == {arm: 0 if arm in ONCE else 2 for arm in ARMS}
    assert len(patching_table(artifacts, "retrain").rows) == len(ARMS)
    [table] = dose_tables(artifacts, "retrain")
    assert table.header == ["arm", "K = 2", "K = 8", "K = 14"]
    assert [row[0] for row in table.rows] == [
        *("baseline (no removal)", "random", "bottom (ranked last)", "gradient", "activation")
    ]
    by_arm = {row[0]: row[1:] for row in table.rows}
    assert len(set(by_arm["baseline (no removal)"])) == 1
    for place, k in enumerate((2, 8, 14)):
        row = next(r for r in artifacts.tests if (r["arm"], r["k"], r["behaviour"]) == ("gradient", k, "*"))
        expected = f"{100 * row['rate']:.1f} % ({100 * row['to_random']['difference']:+.1f})"
        assert by_arm["gradient"][place] == expected


def test_findings_name_the_winner_at_each_k_and_the_a_a_pair(found: tuple[Path, Artifacts]) -> None:
    said = findings(found[1])
    [doses] = [text for text in said if "least is left by" in text]
    assert doses.startswith("retrain: least is left by activation at K = 2 (")
    assert "gradient at K = 14 (" in doses
    assert doses.endswith("not the same at every K; only K = 2 was declared to decide.")
    [pair] = [text for text in said if "(A/A)" in text]
    assert pair.startswith("The baseline trained again on 4 other seeds (A/A) gives ")
    assert "permutation p = " in pair
    assert not any("a-a flagged" in text or "bottom flagged" in text for text in said)
    assert any("removing what gradient ranks last gives" in text for text in said)


def test_methods_that_leave_as_little_are_named_together(found: tuple[Path, Artifacts]) -> None:
    level = [{**row, "rate": 0.1} if row["arm"] in ("gradient", "activation") else row for row in found[1].tests]
    [doses] = [text for text in findings(replace(found[1], tests=level)) if "least is left by" in text]
    both = "gradient or activation at K = {} (10.0 %)"
    told = f"{both.format(2)}, {both.format(8)} and {both.format(14)}, the same at every K; only K = 2 was"
    assert doses.startswith(f"retrain: least is left by {told}")


def test_the_deliverables_have_every_k(found: tuple[Path, Artifacts]) -> None:
    root, artifacts = found
    with (root / "patching_comparison.csv").open() as file:
        cells = {(row["arm"], row["k"]) for row in csv.DictReader(file)}
    assert cells == {(arm, str(k)) for arm in ARMS for k in ((0,) if arm in ONCE else (2, 8, 14))}
    results = json.loads((root / "final_results.json").read_text())
    assert (results["study"]["headline"]["k"], results["study"]["ks"]) == (2, [2, 8, 14])
    assert results["study"]["intervention"] == "remove"
    assert results["aa"] == artifacts.aa
    for page in ("writeup/report.md", "comparison.md", "index.html"):
        assert "dose and response" in (root / page).read_text(), page


@pytest.mark.parametrize(
    ("intervention", "said"),
    [
        ("swap", "exchanging the answers of"),
        ("drop-source", "removing every document of the sources that hold most of"),
    ],
)
def test_the_words_say_what_was_done(found: tuple[Path, Artifacts], intervention: str, said: str) -> None:
    study = found[1].study
    patch = study.patch.model_copy(update={"intervention": intervention})
    texts = findings(replace(found[1], study=study.model_copy(update={"patch": patch})))
    assert any(text.startswith(f"retrain: {said} what gradient flagged gives") for text in texts)
