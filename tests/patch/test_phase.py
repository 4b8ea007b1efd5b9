from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.patch.small import (
    ARMS,
    CHECKED,
    FLAGGED,
    PLANTED,
    POOL,
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

from datablame.engine.execute import Execution
from datablame.engine.phase import Tables
from datablame.errors import PhaseError, RequestError
from datablame.patch.measure import WorkerState
from datablame.patch.phase import exposure_rows
from datablame.patch.registry import arm_kinds
from datablame.patch.trainings import ArmTraining, Intervention, TrainingKey
from datablame.tables import LABELS, Arm, ArmRate, ArmSample, ArmTest, Check, Exposure, Patching, Training

SEEDS = (("retrain", 0), ("retrain", 1), ("continue", 0))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Tables:
    """A run folder in which patch is done."""
    folder = tmp_path_factory.mktemp("finished")
    return patched(attributed(study_of(folder, tiny_pair_folder, **CHECKED), folder / "run"))


def test_every_arm_removes_what_it_should_and_every_filler_is_a_stranger(finished: Tables) -> None:
    arms = finished.rows(Arm)
    assert [(row.arm, row.protocol, row.seed) for row in arms] == [
        (arm, protocol, seed)
        for protocol in ("retrain", "continue")
        for arm in ARMS[1:]
        for seed in (s for p, s in SEEDS if p == protocol)
    ]
    expected: dict[str, set[str]] = {
        "baseline": set(),
        "bm25": set(FLAGGED["bm25"]),
        "gradient": {*FLAGGED["gradient"], "d31"},
        "oracle": set(PLANTED),
    }
    flagged = set().union(*expected.values())
    for row in arms:
        assert row.k == (0 if row.arm in ("baseline", "oracle") else 3)
        assert row.intervention == ("none" if row.arm == "baseline" else "remove")
        assert len(row.fillers) == len(set(row.fillers)) == len(row.removed)
        assert not set(row.fillers) & {*flagged, "d39", *POOL[:8]}
        if row.arm != "random":
            assert set(row.removed) == expected[row.arm]
        else:
            assert len(row.removed) in (3, 4)
    random = {(row.protocol, row.seed): row.removed for row in arms if row.arm == "random"}
    assert random["retrain", 0] == random["continue", 0] != random["retrain", 1]


def test_the_table_has_one_row_for_each_arm_seed_prompt_and_alpha(finished: Tables) -> None:
    table = finished.rows(ArmRate)
    cells = [(r.arm, r.protocol, r.seed, r.prompt_id, r.split, r.alpha, r.n) for r in table]
    prompts = [("h1", "held-out", 2), ("a1", "attribution", 1)]
    assert sorted(cells) == sorted(
        [("after", "none", 0, p, split, a, 3) for p, split, _ in prompts for a in (0.0, 1.0)]
        + [
            (arm, protocol, seed, p, split, a, n)
            for arm in ARMS[1:]
            for protocol, seed in SEEDS
            for p, split, n in prompts
            for a in (0.0, 1.0)
        ]
    )
    assert all(r.n == sum(getattr(r, label) for label in LABELS) for r in table)
    columns = "arm protocol k seed behaviour prompt_id split alpha n harmful refused harmless incoherent unscored rate"
    assert [field.name for field in fields(ArmRate)] == [*columns.split(), "low", "high"]


def test_what_was_removed_was_seen_without_removal_and_never_with_it(finished: Tables) -> None:
    assert finished.of(Patching).exposed
    exposure = finished.rows(Exposure)
    assert len(exposure) == 4 * 3
    assert {(row.seen_in_baseline, row.seen_in_arm, row.seen_swapped) for row in exposure} == {(1.0, 0, None)}


def test_exposure_says_what_the_baseline_saw_and_the_arm_did_not(tmp_path: Path, tiny_pair_folder: Path) -> None:
    changes = {
        "baseline": Intervention(),
        "bm25": Intervention("remove", dict.fromkeys("abcd", "x")),
        "gradient": Intervention("remove"),
    }
    ordered = [ArmTraining(TrainingKey(arm, "retrain", 3, 0), change) for arm, change in changes.items()]
    seen = {"baseline": {"a": 2, "b": 1, "x": 1}, "bm25": {"d": 1}, "gradient": {}}
    results = {str(key): {"exposure": seen[key.arm], "exposure_swapped": {}} for key, *_ in ordered}
    assert exposure_rows(ordered, results, arm_kinds(study_of(tmp_path, tiny_pair_folder))) == [
        Exposure("bm25", "retrain", 3, 0, removed=4, seen_in_baseline=0.5, seen_in_arm=1, seen_swapped=None),
        Exposure("gradient", "retrain", 3, 0, removed=0, seen_in_baseline=1.0, seen_in_arm=0, seen_swapped=None),
    ]


def test_too_few_steps_to_see_the_flagged_documents_fail_the_gate(
    tmp_path: Path, tiny_pair_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(tmp_path, tiny_pair_folder, steps=2, protocols=["continue"], headline="continue")
    assert not patched(attributed(study, tmp_path / "run")).of(Patching).exposed
    assert "exposure gate failed" in caplog.text


def test_training_is_logged_and_adapters_are_kept(finished: Tables) -> None:
    training = finished.rows(Training)
    assert len(training) == 15
    for row in training:
        assert row.steps == 8
        assert row.weight_change_norm > 0
        assert ("q_proj" in row.matched_modules) == (row.protocol == "continue")
    adapters = sorted(name for name in files(finished.root) if name.endswith("safetensors"))
    ks = {"baseline": 0, "oracle": 0}
    assert adapters == sorted(f"continue-{arm}-k{ks.get(arm, 3)}-s0/adapter_model.safetensors" for arm in ARMS[1:])


def test_arms_are_compared_and_the_headline_is_marked(finished: Tables) -> None:
    about = finished.of(Patching)
    assert (about.alpha, about.alpha_star_found, about.k, about.skipped_arms) == (1.0, True, 3, ())
    assert (about.ks, about.again) == ((3,), None)
    headline = [row for row in finished.rows(ArmTest) if row.headline]
    assert [row.arm for row in headline] == list(ARMS)
    assert {row.protocol for row in headline} == {"retrain"}
    assert headline[0].rate == 1.0


@pytest.mark.parametrize(
    "items", [pytest.param(0, marks=pytest.mark.slow), 7, pytest.param(14, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_to_the_same_bytes(
    finished: Tables, tmp_path: Path, tiny_pair_folder: Path, items: int
) -> None:
    world = attributed(study_of(tmp_path, tiny_pair_folder, **CHECKED), tmp_path / "run")
    with pytest.raises(Killed):
        patched(world, progress=KilledAfter(items + 1))
    journal = work(world.root, "patch").out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:items]) + lines[items][:20])
    patched(world)
    assert files(world.root) == files(finished.root)


def test_arms_do_not_depend_on_the_arms_before_them(finished: Tables, tmp_path: Path, tiny_pair_folder: Path) -> None:
    study = study_of(tmp_path, tiny_pair_folder, arms=ARMS[::-1])
    reversed_ = patched(attributed(study, tmp_path / "run"))
    assert mostly_alike(reversed_.rows(ArmSample), finished.rows(ArmSample))

    def by_training(rows: Sequence[Any]) -> dict[Any, Any]:
        return {(row.arm, row.protocol, row.seed): row for row in rows}

    assert by_training(reversed_.rows(Arm)) == by_training(finished.rows(Arm))
    trained, expected = by_training(reversed_.rows(Training)), by_training(finished.rows(Training))
    assert trained.keys() == expected.keys()
    for key, row in trained.items():
        assert course(row) == pytest.approx(course(expected[key]), rel=1e-3)


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(finished: Tables, tmp_path: Path, tiny_pair_folder: Path) -> None:
    world = attributed(study_of(tmp_path, tiny_pair_folder, **CHECKED), tmp_path / "run")
    patched(world, Execution(workers=2, threads=1))
    assert files(world.root) == files(finished.root)


@pytest.mark.parametrize("flagged", [{}, {"loss": ["d30"]}])
def test_where_nothing_is_flagged_for_any_arm_the_tables_are_empty(
    tmp_path: Path, tiny_pair_folder: Path, flagged: dict[str, list[str]]
) -> None:
    """Nor does it matter then whether the fine-tune set holds what other methods flag."""
    study = study_of(tmp_path, tiny_pair_folder, arms=ARMS[:5], k=[3, 15], size=15)
    tables = patched(attributed(study, tmp_path / "run", flagged, alpha=None))
    for row in (Arm, Training, Exposure, ArmSample, ArmRate, ArmTest, Check):
        assert tables.rows(row) == []
    about = tables.of(Patching)
    assert (about.alpha, about.alpha_star_found, about.k, about.ks, about.exposed) == (None, False, None, (), True)
    assert about.checks.absent == {"perplexity": "no arm was trained", "refusal": "no arm was trained"}
    assert about.checks.clean_ids == ()


def test_an_arm_that_flagged_nothing_is_skipped_and_named(tmp_path: Path, tiny_pair_folder: Path) -> None:
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0])
    tables = patched(attributed(study, tmp_path / "run", {"bm25": FLAGGED["bm25"]}, alpha=None))
    about = tables.of(Patching)
    assert (about.skipped_arms, about.alpha_star_found, about.alpha) == (("gradient",), False, 1.0)
    assert [row.arm for row in tables.rows(Arm)] == ["baseline", "random", "bm25", "oracle"]


@pytest.mark.parametrize(
    ("size", "problem"),
    [(6, r"patch\.size = 6 is less than the 7 flagged"), (36, r"patch\.size = 36 leaves 3 documents")],
)
def test_a_set_that_is_too_small_or_too_large_is_refused_before_training(
    tmp_path: Path, tiny_pair_folder: Path, size: int, problem: str
) -> None:
    world = attributed(study_of(tmp_path, tiny_pair_folder, size=size), tmp_path / "run")
    with pytest.raises(RequestError, match=problem):
        patched(world)
    assert list(work(world.root, "patch").out.iterdir()) == []


def test_the_oracle_takes_out_the_copies_of_what_was_planted(tmp_path: Path, tiny_pair_folder: Path) -> None:
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], steps=1)
    tables = patched(attributed(study, tmp_path / "run", planted=("d05", "d30", "d39")))
    [oracle] = tables.rows(Arm, arm="oracle")
    assert oracle.removed == ("d05", "d30", "d31")


def test_what_a_method_without_an_arm_flags_is_in_the_set_and_never_a_filler(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], steps=1)

    def fillers(name: str, flagged: dict[str, Sequence[str]]) -> set[str]:
        tables = patched(attributed(study, tmp_path / name, flagged))
        return {doc_id for row in tables.rows(Arm) for doc_id in row.fillers}

    control = sorted(fillers("without", FLAGGED))[:3]
    assert not fillers("with", {**FLAGGED, "loss": control}) & set(control)


@pytest.fixture
def state(tmp_path: Path, tiny_pair_folder: Path) -> Callable[..., WorkerState]:
    def build(**patch: Any) -> WorkerState:
        return state_of(attributed(study_of(tmp_path, tiny_pair_folder, **patch), tmp_path / "run"))

    return build


def test_data_order_and_initial_adapter_are_the_same_for_all_arms_of_a_seed(state: Callable[..., WorkerState]) -> None:
    worker = state(steps=2)
    same = [measured(worker, arm, "continue") for arm in ("baseline", "random")]
    assert same[0]["training"] == same[1]["training"]
    other = measured(worker, "baseline", "continue", seed=1)
    assert other["training"]["losses"] != same[0]["training"]["losses"]


def test_a_loss_that_is_not_finite_stops_the_phase_and_names_the_remedy(state: Callable[..., WorkerState]) -> None:
    worker = state(retrain={"method": "full"})
    with torch.no_grad():
        worker.trainees["retrain"].get_input_embeddings().weight.mul_(1e38)
    with pytest.raises(
        PhaseError, match=r"retrain-baseline-k3-s0: the loss is not finite .*patch\.retrain\.learning_rate"
    ):
        measured(worker, "baseline", "retrain")


def test_training_rows_read_back_as_they_were_written(finished: Tables) -> None:
    for row in finished.rows(Training):
        assert all(isinstance(value, tuple) for value in (row.losses, row.matched_modules))
        assert asdict(row)["modules"] > 0
