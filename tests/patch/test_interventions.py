"""Several K, the baseline again, and pairs turned round, from tables to tables."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.patch.small import (
    QUICK,
    Killed,
    KilledAfter,
    attributed,
    course,
    files,
    measured,
    mostly_alike,
    patched,
    state_of,
    study_of,
)
from tests.worlds import work

from datablame.config.schema import Study
from datablame.engine.phase import Tables
from datablame.patch.trainings import Intervention
from datablame.tables import Arm, ArmSample, ArmTest, Exposure, Patching, Training

FEW = ("after", "baseline", "random", "gradient")
MANY = (*FEW, "a-a", "bottom", "oracle")


def cells_of(rows: Any) -> dict[tuple[str, int, int], Any]:
    """Rows of a table by arm, K and seed."""
    return {(row.arm, row.k, row.seed): row for row in rows}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Tables:
    """A run folder in which arms ran at K = 1 and 3, with every control."""
    folder = tmp_path_factory.mktemp("several")
    return patched(attributed(study_of(folder, tiny_pair_folder, k=[3, 1], arms=MANY, **QUICK), folder / "run"))


def test_arms_that_ignore_k_are_trained_once_and_the_others_at_each(several: Tables) -> None:
    cells = [
        ("baseline", 0, 0),
        *[("random", 1, 0), ("random", 3, 0), ("gradient", 1, 0), ("gradient", 3, 0)],
        *[("a-a", 0, 1), ("bottom", 1, 0), ("bottom", 3, 0), ("oracle", 0, 0)],
    ]
    assert list(cells_of(several.rows(Arm))) == list(cells_of(several.rows(Training))) == cells
    assert set(cells_of(several.rows(ArmSample))) == {("after", 0, 0), *cells}
    removed = {(row.arm, row.k): row.removed for row in several.rows(Arm)}
    assert removed["gradient", 1] == ("d01",)
    assert removed["gradient", 3] == ("d01", "d05", "d30", "d31")
    assert removed["baseline", 0] == removed["a-a", 0] == ()
    assert (len(removed["bottom", 1]), len(removed["bottom", 3])) == (1, 3)
    assert not {"d01", "d05", "d30", "d31"} & set(removed["bottom", 3])


def test_exposure_is_logged_for_every_arm_that_changes_the_data(several: Tables) -> None:
    assert [(row.arm, row.k) for row in several.rows(Exposure)] == [
        *[("random", 1), ("random", 3), ("gradient", 1), ("gradient", 3)],
        *[("bottom", 1), ("bottom", 3), ("oracle", 0)],
    ]
    assert several.of(Patching).exposed


def test_only_the_declared_k_decides_and_the_again_arm_is_told_apart(several: Tables) -> None:
    about, tests = several.of(Patching), several.rows(ArmTest)
    assert (about.k, about.ks, about.skipped_arms) == (3, (1, 3), ())
    headline = {(row.arm, row.k) for row in tests if row.headline}
    controls = {(arm, 0) for arm in ("after", "baseline", "a-a", "oracle")}
    assert headline == {*controls, ("random", 3), ("gradient", 3), ("bottom", 3)}
    assert {(row.arm, row.k) for row in tests} - headline == {(arm, 1) for arm in ("random", "gradient", "bottom")}
    assert about.again is not None
    assert (about.again.protocol, about.again.seeds) == ("continue", 1)
    assert (about.again.p, about.again.why_no_p) == (None, "fewer than 4 training seeds")


def test_one_k_and_fewer_controls_give_the_same_trainings(
    several: Tables, tmp_path: Path, tiny_pair_folder: Path
) -> None:
    """The oracle stays: what it removes belongs to the fine-tune set."""
    study = study_of(tmp_path, tiny_pair_folder, arms=[*FEW, "oracle"], **QUICK)
    tables = patched(attributed(study, tmp_path / "run"))
    arms, every = cells_of(tables.rows(Arm)), cells_of(several.rows(Arm))
    assert arms == {cell: row for cell, row in every.items() if cell in arms}
    trained, all_trained = cells_of(tables.rows(Training)), cells_of(several.rows(Training))
    assert trained.keys() == arms.keys()
    for cell, row in trained.items():
        assert course(row) == pytest.approx(course(all_trained[cell]), rel=1e-3)
    samples = tables.rows(ArmSample)
    cells = cells_of(samples)
    assert mostly_alike(samples, [row for row in several.rows(ArmSample) if (row.arm, row.k, row.seed) in cells])


def test_a_killed_run_at_several_ks_resumes_to_the_same_bytes(
    several: Tables, tmp_path: Path, tiny_pair_folder: Path
) -> None:
    world = attributed(study_of(tmp_path, tiny_pair_folder, k=[3, 1], arms=MANY, **QUICK), tmp_path / "run")
    with pytest.raises(Killed):
        patched(world, progress=KilledAfter(5))
    journal = work(world.root, "patch").out / "journal.jsonl"
    assert 0 < len(journal.read_bytes().splitlines()) < 9
    patched(world)
    keys = [json.loads(line)["key"] for line in journal.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) >= 9
    assert files(world.root) == files(several.root)


def test_a_swapped_pair_trains_as_one_whose_answers_stand_exchanged_in_the_data(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    ids = {"d01", "d05", "d09", "d30"}

    def trained(name: str, change: Intervention | None = None, turned: frozenset[str] = frozenset()) -> Any:
        study = study_of(tmp_path, tiny_pair_folder, intervention="swap", **QUICK)
        world = attributed(study, tmp_path / name, pairs=True, turned=turned)
        return measured(state_of(world, sorted(ids)), name, "continue", change=change)

    swapped = trained("gradient", Intervention("swap", swapped=tuple(sorted(ids))))
    plain = trained("baseline")
    exchanged = trained("exchanged", turned=frozenset(ids))
    assert swapped["training"] == exchanged["training"]
    assert swapped["training"]["losses"] != plain["training"]["losses"] or (
        swapped["training"]["final_loss"] != plain["training"]["final_loss"]
    )
    members = ids - {"d30"}
    assert (set(plain["exposure"]), plain["exposure_swapped"]) == (members, {})
    assert (swapped["exposure"], swapped["exposure_swapped"]) == ({}, plain["exposure"])


def test_swap_turns_the_flagged_pairs_and_random_ones_and_never_shows_them_as_they_were(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    study = study_of(tmp_path, tiny_pair_folder, intervention="swap", arms=FEW, **QUICK)
    tables = patched(attributed(study, tmp_path / "run", pairs=True))
    arms = {row.arm: row for row in tables.rows(Arm)}
    assert {arm: row.intervention for arm, row in arms.items()} == {
        "baseline": "none",
        "random": "swap",
        "gradient": "swap",
    }
    assert arms["gradient"].removed == ("d01", "d05", "d30", "d31")
    assert len(arms["random"].removed) in (3, 4)
    assert all(row.fillers == () for row in arms.values())
    assert tables.of(Patching).exposed
    for row in tables.rows(Exposure):
        assert row.removed == row.seen_swapped == len(arms[row.arm].removed)
        assert (row.seen_in_baseline, row.seen_in_arm) == (1.0, 0)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_arms_on_preference_pairs_are_trained_by_dpo(
    tmp_path: Path, tiny_pair_folder: Path, method: str, micro_batch: int | None
) -> None:
    retrain = {"method": method, "learning_rate": 1e-2, "steps": 24}
    patch: dict[str, Any] = {"protocols": ["retrain"], "arms": FEW, "seeds": [0], "micro_batch": micro_batch}
    study: Study = study_of(tmp_path, tiny_pair_folder, retrain=retrain, **patch)
    trained = patched(attributed(study, tmp_path / "run", pairs=True)).rows(Training)
    assert [row.arm for row in trained] == ["baseline", "random", "gradient"]
    for row in trained:
        assert row.losses[0] == pytest.approx(math.log(2), rel=1e-4)
        assert row.final_loss < row.losses[0]
