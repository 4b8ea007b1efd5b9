"""Several K, the baseline again, and pairs turned round, from files to files."""

import json
from pathlib import Path
from typing import Any

import pytest
from datablame.patch.bench import Bench, Job, Plan, set_up
from datablame.patch.run import run
from datablame.world.kinds import check_kind
from tests.patch.measured import measured
from tests.patch.test_pairs import paired
from tests.patch.test_run import ONE, Killed, KilledAfter, course, earlier_phases, files, mostly_alike, study_of

from datablame.engine.execute import Silent
from datablame.engine.files import read_json, read_jsonl, write_jsonl
from datablame.engine.run_folder import read_table
from datablame.errors import RequestError
from datablame.study.schema import Study
from datablame.world.documents import read_pool

FEW = ("untrained", "baseline", "random", "gradient")
QUICK: dict[str, Any] = {
    "protocols": ["continue"],
    "headline": "continue",
    "seeds": [0],
    "clean_documents": 0,
    "harmless_samples": 0,
}


def rows_of(out: Path, name: str = "samples.parquet") -> dict[tuple[str, int, int], list[str]]:
    """What stands in an artifact for each arm, K and seed."""
    found: dict[tuple[str, int, int], list[str]] = {}
    for row in read_jsonl(out / name) if name.endswith("jsonl") else read_table(out / name):
        found.setdefault((row["arm"], row["k"], row["seed"]), []).append(json.dumps(row, sort_keys=True))
    return found


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """A run folder in which arms ran at K = 1 and 3, with every control."""
    folder = tmp_path_factory.mktemp("several")
    inputs = earlier_phases(folder)
    study = study_of(folder, tiny_pair_folder, k=[3, 1], arms=[*FEW, "a-a", "bottom", "oracle"], **QUICK)
    run(study, inputs, folder / "artifacts" / "patch", ONE, Silent())
    return folder


def test_arms_that_ignore_k_are_trained_once_and_the_others_at_each(several: Path) -> None:
    out = several / "artifacts" / "patch"
    cells = [
        ("baseline", 0, 0),
        *[("random", 1, 0), ("random", 3, 0), ("gradient", 1, 0), ("gradient", 3, 0)],
        *[("a-a", 0, 1), ("bottom", 1, 0), ("bottom", 3, 0), ("oracle", 0, 0)],
    ]
    for name in ("arms.jsonl", "training.jsonl"):
        assert list(rows_of(out, name)) == cells
    assert set(rows_of(out)) == {("untrained", 0, 0), *cells}
    removed = {(row["arm"], row["k"]): row["removed"] for row in read_jsonl(out / "arms.jsonl")}
    assert removed["gradient", 1] == ["d01"]
    assert removed["gradient", 3] == ["d01", "d05", "d30", "d31"]
    assert removed["baseline", 0] == removed["a-a", 0] == []
    assert (len(removed["bottom", 1]), len(removed["bottom", 3])) == (1, 3)
    assert not {"d01", "d05", "d30", "d31"} & set(removed["bottom", 3])


def test_exposure_is_logged_for_every_arm_that_changes_the_data(several: Path) -> None:
    exposure = read_json(several / "artifacts" / "patch" / "exposure.json")
    assert [(row["arm"], row["k"]) for row in exposure["rows"]] == [
        *[("random", 1), ("random", 3), ("gradient", 1), ("gradient", 3)],
        *[("bottom", 1), ("bottom", 3), ("oracle", 0)],
    ]
    assert exposure["passed"]


def test_only_the_declared_k_decides_and_the_again_arm_is_told_apart(several: Path) -> None:
    tests = read_json(several / "artifacts" / "patch" / "tests.json")
    assert (tests["k"], tests["ks"], tests["skipped_arms"]) == (3, [1, 3], [])
    headline = {(row["arm"], row["k"]) for row in tests["rows"] if row["headline"]}
    controls = {(arm, 0) for arm in ("untrained", "baseline", "a-a", "oracle")}
    assert headline == {*controls, ("random", 3), ("gradient", 3), ("bottom", 3)}
    assert {(row["arm"], row["k"]) for row in tests["rows"]} - headline == {
        (arm, 1) for arm in ("random", "gradient", "bottom")
    }
    assert tests["aa"]["protocol"] == "continue"
    assert tests["aa"]["seeds"] == 1
    assert (tests["aa"]["p"], tests["aa"]["why_no_p"]) == (None, "fewer than 4 training seeds")


def test_one_k_and_fewer_controls_give_the_same_trainings(
    several: Path, tmp_path: Path, tiny_pair_folder: Path
) -> None:
    """The oracle stays: what it removes belongs to the fine-tune set."""
    out = tmp_path / "out"
    study = study_of(tmp_path, tiny_pair_folder, arms=[*FEW, "oracle"], **QUICK)
    run(study, earlier_phases(tmp_path), out, ONE, Silent())
    every = several / "artifacts" / "patch"
    arms = rows_of(out, "arms.jsonl")
    assert arms == {cell: rows for cell, rows in rows_of(every, "arms.jsonl").items() if cell in arms}
    samples, trained = rows_of(out), rows_of(out, "training.jsonl")
    assert trained.keys() == arms.keys()
    before = [json.loads(row) for cell, rows in rows_of(every).items() if cell in samples for row in rows]
    assert mostly_alike([json.loads(row) for rows in samples.values() for row in rows], before)
    for cell, rows in rows_of(every, "training.jsonl").items():
        if cell in trained:
            [one, other] = [course(json.loads(row)) for row in (*rows, *trained[cell])]
            assert one == pytest.approx(other, rel=1e-3)


def test_a_killed_run_at_several_ks_resumes_to_the_same_bytes(
    several: Path, tmp_path: Path, tiny_pair_folder: Path
) -> None:
    inputs, out = earlier_phases(tmp_path), tmp_path / "artifacts" / "patch"
    study = study_of(tmp_path, tiny_pair_folder, k=[3, 1], arms=[*FEW, "a-a", "bottom", "oracle"], **QUICK)
    with pytest.raises(Killed):
        run(study, inputs, out, ONE, KilledAfter(5))
    finished = len((out / "journal.jsonl").read_bytes().splitlines())
    assert 0 < finished < 9
    run(study, inputs, out, ONE, Silent())
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_bytes().splitlines()]
    keys = [line["key"] for line in lines]
    assert len(keys) == len(set(keys)) >= 9
    assert files(out) == files(several / "artifacts" / "patch")


def turned_round(folder: Path, ids: set[str]) -> None:
    """Exchange the answers of some pairs in the data itself."""
    documents = read_jsonl(folder / "documents.jsonl")
    for row in documents:
        if row["id"] in ids:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write_jsonl(folder / "documents.jsonl", documents)


def bench_of(study: Study, out: Path, watched: set[str]) -> Bench:
    assert study.data is not None
    documents = {document.id: document for document in read_pool(study.data, 0, Silent()).documents}
    members = tuple(list(documents)[:24])
    return set_up(Plan(study, members, documents, (), (0.0, 1.0), frozenset(watched), out))


def test_a_swapped_pair_trains_as_one_whose_answers_stand_exchanged_in_the_data(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    ids = {"d01", "d05", "d09", "d30"}
    study = study_of(tmp_path, tiny_pair_folder, intervention="swap", **QUICK)
    earlier_phases(tmp_path)
    paired(tmp_path, slice(None))
    swapped = measured(bench_of(study, tmp_path, ids), Job("gradient", "continue", 3, 0, {}, tuple(sorted(ids))))
    plain = measured(bench_of(study, tmp_path, ids), Job("baseline", "continue", 0, 0, {}))
    turned_round(tmp_path, ids)
    exchanged = measured(bench_of(study, tmp_path, ids), Job("baseline", "continue", 0, 0, {}))
    assert swapped["training"] == exchanged["training"]
    assert swapped["training"]["losses"] != plain["training"]["losses"] or (
        swapped["training"]["final_loss"] != plain["training"]["final_loss"]
    )
    members = ids - {"d30"}
    assert (set(plain["seen"]), plain["seen_swapped"]) == (members, {})
    assert (swapped["seen"], swapped["seen_swapped"]) == ({}, plain["seen"])


def test_swap_turns_the_flagged_pairs_and_random_ones_and_never_shows_them_as_they_were(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    inputs, out = earlier_phases(tmp_path), tmp_path / "artifacts" / "patch"
    paired(tmp_path, slice(None))
    run(study_of(tmp_path, tiny_pair_folder, intervention="swap", arms=FEW, **QUICK), inputs, out, ONE, Silent())
    arms = {row["arm"]: row for row in read_jsonl(out / "arms.jsonl")}
    assert {arm: row["intervention"] for arm, row in arms.items()} == {
        "baseline": "none",
        "random": "swap",
        "gradient": "swap",
    }
    assert arms["gradient"]["removed"] == ["d01", "d05", "d30", "d31"]
    assert len(arms["random"]["removed"]) in (3, 4)
    assert all(row["fillers"] == [] for row in arms.values())
    exposure = read_json(out / "exposure.json")
    assert exposure["passed"]
    for row in exposure["rows"]:
        assert row["removed"] == row["seen_swapped"] == len(arms[row["arm"]]["removed"])
        assert (row["seen_in_baseline"], row["seen_in_arm"]) == (1.0, 0)


def test_swap_without_pairs_is_refused_when_the_documents_are_first_read(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    from datablame.attribute.run import run as attribute

    inputs = earlier_phases(tmp_path)
    study = study_of(tmp_path, tiny_pair_folder, intervention="swap", arms=FEW, **QUICK)
    for phase in (attribute, run):
        with pytest.raises(RequestError, match=r"patch\.intervention = swap exchanges .* has none; choose remove, or"):
            phase(study, inputs, tmp_path / "out", ONE, Silent())
    assert not (tmp_path / "out").exists()


def test_a_pool_of_both_kinds_is_refused_when_the_documents_are_first_read(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    from datablame.attribute.run import run as attribute

    inputs = earlier_phases(tmp_path)
    paired(tmp_path, slice(20))
    study = study_of(tmp_path, tiny_pair_folder, arms=FEW, **QUICK)
    with pytest.raises(RequestError, match=r"mixes preference pairs with documents of one answer.*; keep one kind"):
        attribute(study, inputs, tmp_path / "out", ONE, Silent())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("pairs", "intervention"), [(0, "remove"), (40, "remove"), (40, "swap"), (0, "drop-source")])
def test_a_pool_of_one_kind_is_taken(tmp_path: Path, tiny_pair_folder: Path, pairs: int, intervention: str) -> None:
    earlier_phases(tmp_path)
    paired(tmp_path, slice(pairs))
    study = study_of(tmp_path, tiny_pair_folder, intervention=intervention, arms=FEW, **QUICK)
    assert study.data is not None
    documents = read_pool(study.data, 0, Silent()).documents
    assert sum(bool(document.rejected) for document in documents) == pairs
    check_kind(documents, study)
    check_kind([], study)
