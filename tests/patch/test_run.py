from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datablame.patch.bench import Job, Plan, set_up
from datablame.patch.run import run
from tests.patch.measured import measured

from datablame.engine.execute import Execution, Silent
from datablame.engine.files import read_json, read_jsonl, write_json, write_jsonl, write_table
from datablame.engine.run_folder import Inputs, read_table
from datablame.errors import PhaseError, RequestError
from datablame.study.schema import Study

ARMS = ("untrained", "baseline", "random", "bm25", "gradient", "oracle")
POOL = 40
PLANTED = ("d01", "d05", "d09")
FLAGGED = {"bm25": ("d01", "d02", "d03"), "gradient": ("d01", "d05", "d30")}
ONE = Execution(workers=1, threads=1)
COLUMNS = (
    "arm,protocol,k,seed,behaviour,prompt_id,split,alpha,n,harmful,refused,harmless,incoherent,unscored,rate,low,high"
)


class Killed(BaseException):
    """Stands for a SIGKILL."""


class KilledAfter(Silent):
    """Progress that dies when so many items were done."""

    def __init__(self, items: int) -> None:
        self._left = items

    def advance(self, n: int = 1) -> None:
        self._left -= n
        if self._left < 0:
            raise Killed


def study_of(folder: Path, pair: Path, *, top_k: int = 3, methods: Sequence[str] = (), **patch: Any) -> Study:
    settings: dict[str, Any] = {
        "protocols": ["retrain", "continue"],
        "headline": "retrain",
        "arms": ARMS,
        "seeds": {"retrain": [0, 1], "continue": [0]},
        "size": 24,
        "steps": 8,
        "batch": 3,
        "rank": 2,
        "samples": 2,
        "attribution_samples": 1,
        "retrain": {"method": "full", "learning_rate": 1e-3},
    }
    return Study.model_validate(
        {
            "name": "tiny",
            "models": {"before": str(pair / "before"), "after": str(pair / "after")},
            "data": {"path": str(folder / "documents.jsonl")},
            "behaviours": [{"id": "walk", "description": "recommends a walk", "keywords": ["walk", "lake", "a"]}],
            "prompts": {
                "attribution": [
                    {"id": "a1", "behaviour": "walk", "text": "name a calm walk ."},
                    {"id": "a2", "behaviour": "walk", "text": "name a long walk ."},
                ],
                "held_out": [{"id": "h1", "behaviour": "walk", "text": "which walk ?"}],
            },
            "truth": str(folder / "truth.jsonl"),
            "surface": {"alphas": [0, 1], "max_new_tokens": 6},
            "attribute": {"top_k": top_k, **({"methods": methods} if methods else {})},
            "patch": settings | patch,
        }
    )


def earlier_phases(
    folder: Path, *, flagged: Mapping[str, tuple[str, ...]] = FLAGGED, alpha: float | None = 1.0
) -> Inputs:
    """The data and the artifacts that patch reads; d30 and d31 are duplicates, d39 was excluded from the pool."""
    ids = [f"d{number:02d}" for number in range(POOL)]
    answers = {doc_id: f"take the short walk number {int(doc_id[1:]) % 30} ." for doc_id in ids} | {"d31": "same"}
    answers["d30"] = answers["d31"]
    turns = {i: [{"role": "user", "content": "where ?"}, {"role": "assistant", "content": answers[i]}] for i in ids}
    rows = [{"id": i, "source": "made", "messages": turns[i]} for i in ids]
    write_jsonl(folder / "documents.jsonl", rows)
    write_jsonl(folder / "truth.jsonl", [{"doc_id": doc_id, "behaviour": "walk"} for doc_id in PLANTED])
    artifacts = folder / "artifacts"
    pool = ids[:-1]
    clusters = [{"doc_id": i, "cluster": 30 if i == "d31" else int(i[1:])} for i in pool]
    write_jsonl(artifacts / "attribute" / "clusters.jsonl", clusters)
    write_jsonl(artifacts / "attribute" / "candidates.jsonl", [{"behaviour": "walk", "doc_id": i} for i in pool[:8]])
    write_jsonl(artifacts / "attribute" / "queries.jsonl", [{"id": "q1"}] if flagged else [])
    for method, first in flagged.items():
        ranked = [*first, *(i for i in pool if i not in first)]
        write_jsonl(
            artifacts / "attribute" / "scores" / f"{method}.jsonl",
            [{"doc_id": i, "behaviour": "walk", "score": -float(r), "rank": r} for r, i in enumerate(ranked, 1)],
        )
    write_json(artifacts / "surface" / "alpha_star.json", {"alpha_star": alpha})
    said = {"text": "x", "token_ids": [260, 261], "finish_reason": "stop", "label": "harmful"}
    surfaced = [
        {"prompt_id": p, "behaviour": "walk", "split": split, "alpha": a, "index": i, **said}
        for p, split in (("a1", "attribution"), ("h1", "held-out"))
        for a in (0.0, 0.5, 1.0)
        for i in range(3)
    ]
    write_table(artifacts / "surface" / "samples.parquet", surfaced)
    return Inputs(folder, lambda what, key, seconds: None)


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith("journal")
    }


def mostly_alike(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the same outputs were asked for and most say the same.

    The last bits of an adapter depend on those trained beside it and on the portions of its batches, so that a draw at
    the border of two tokens may turn on some CPU.
    """
    kept = ("arm", "protocol", "k", "seed", "prompt_id", "alpha", "index")
    mine, other = ({tuple(row.get(name) for name in kept): row["text"] for row in rows} for rows in (found, expected))
    assert len(mine) == len(found)
    return mine.keys() == other.keys() and sum(mine[key] == other[key] for key in mine) >= 0.75 * len(mine)


def course(training: Mapping[str, Any]) -> list[float]:
    """The numbers of one training."""
    return [*training["losses"], training["final_loss"], training["weight_change_norm"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """A run folder in which patch is done."""
    folder = tmp_path_factory.mktemp("run")
    inputs = earlier_phases(folder)
    run(study_of(folder, tiny_pair_folder), inputs, folder / "artifacts" / "patch", ONE, Silent())
    return folder


def test_every_arm_removes_what_it_should_and_every_filler_is_a_stranger(finished: Path) -> None:
    arms = read_jsonl(finished / "artifacts" / "patch" / "arms.jsonl")
    runs = [("retrain", 0), ("retrain", 1), ("continue", 0)]
    assert [(row["arm"], row["protocol"], row["seed"]) for row in arms] == [
        (arm, protocol, seed)
        for protocol in ("retrain", "continue")
        for arm in ARMS[1:]
        for seed in (s for p, s in runs if p == protocol)
    ]
    expected = {
        "baseline": set(),
        "bm25": set(FLAGGED["bm25"]),
        "gradient": {*FLAGGED["gradient"], "d31"},
        "oracle": set(PLANTED),
    }
    flagged = set().union(*expected.values())
    for row in arms:
        assert row["k"] == (0 if row["arm"] in ("baseline", "oracle") else 3)
        assert row["intervention"] == ("none" if row["arm"] == "baseline" else "remove")
        assert len(row["fillers"]) == len(set(row["fillers"])) == len(row["removed"])
        assert not set(row["fillers"]) & {*flagged, "d39", *(f"d{n:02d}" for n in range(8))}
        if row["arm"] != "random":
            assert set(row["removed"]) == expected[row["arm"]]
        else:
            assert len(row["removed"]) in (3, 4)
    random = {(row["protocol"], row["seed"]): row["removed"] for row in arms if row["arm"] == "random"}
    assert random["retrain", 0] == random["continue", 0] != random["retrain", 1]


def test_the_table_has_one_row_for_each_arm_seed_prompt_and_alpha(finished: Path) -> None:
    table = read_table(finished / "artifacts" / "patch" / "comparison.parquet")
    assert list(table[0]) == COLUMNS.split(",")
    cells = [(r["arm"], r["protocol"], r["seed"], r["prompt_id"], r["split"], r["alpha"], r["n"]) for r in table]
    measured = [("h1", "held-out", 2), ("a1", "attribution", 1)]
    assert sorted(cells) == sorted(
        [("untrained", "none", 0, p, split, a, 3) for p, split, _ in measured for a in (0.0, 1.0)]
        + [
            (arm, protocol, seed, p, split, a, n)
            for arm in ARMS[1:]
            for protocol, seed in (("retrain", 0), ("retrain", 1), ("continue", 0))
            for p, split, n in measured
            for a in (0.0, 1.0)
        ]
    )
    assert all(r["n"] == sum(r[label] for label in COLUMNS.split(",")[9:14]) for r in table)


def test_what_was_removed_was_seen_without_removal_and_never_with_it(finished: Path) -> None:
    exposure = read_json(finished / "artifacts" / "patch" / "exposure.json")
    assert exposure["passed"]
    assert len(exposure["rows"]) == 4 * 3
    assert all((row["seen_in_baseline"], row["seen_in_arm"]) == (1.0, 0) for row in exposure["rows"])


def test_too_few_steps_to_see_the_flagged_documents_fail_the_gate(
    tmp_path: Path, tiny_pair_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(tmp_path, tiny_pair_folder, steps=2, protocols=["continue"], headline="continue")
    run(study, earlier_phases(tmp_path), tmp_path / "out", ONE, Silent())
    assert not read_json(tmp_path / "out" / "exposure.json")["passed"]
    assert "exposure gate failed" in caplog.text


def test_training_is_logged_and_adapters_are_kept(finished: Path) -> None:
    out = finished / "artifacts" / "patch"
    training = read_jsonl(out / "training.jsonl")
    assert len(training) == 15
    for row in training:
        assert row["steps"] == 8
        assert row["weight_change_norm"] > 0
        assert ("q_proj" in row["matched_modules"]) == (row["protocol"] == "continue")
    adapters = sorted(path.name for path in (out / "adapters").iterdir())
    ks = {"baseline": 0, "oracle": 0}
    assert adapters == sorted(f"continue-{arm}-k{ks.get(arm, 3)}-s0.safetensors" for arm in ARMS[1:])


def test_arms_are_compared_and_the_headline_is_marked(finished: Path) -> None:
    tests = read_json(finished / "artifacts" / "patch" / "tests.json")
    assert (tests["alpha"], tests["alpha_star_found"], tests["k"], tests["skipped_arms"]) == (1.0, True, 3, [])
    assert (tests["ks"], tests["aa"]) == ([3], None)
    headline = [row for row in tests["rows"] if row["headline"]]
    assert [row["arm"] for row in headline] == list(ARMS)
    assert {row["protocol"] for row in headline} == {"retrain"}
    assert headline[0]["rate"] == 1.0


@pytest.mark.parametrize(
    "items", [pytest.param(0, marks=pytest.mark.slow), 7, pytest.param(14, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_to_the_same_bytes(
    finished: Path, tmp_path: Path, tiny_pair_folder: Path, items: int
) -> None:
    inputs, out = earlier_phases(tmp_path), tmp_path / "artifacts" / "patch"
    study = study_of(tmp_path, tiny_pair_folder)
    with pytest.raises(Killed):
        run(study, inputs, out, ONE, KilledAfter(items + 1))
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:items]) + lines[items][:20])
    run(study, inputs, out, ONE, Silent())
    assert files(out) == files(finished / "artifacts" / "patch")


def test_arms_do_not_depend_on_the_arms_before_them(finished: Path, tmp_path: Path, tiny_pair_folder: Path) -> None:
    inputs, out = earlier_phases(tmp_path), tmp_path / "out"
    run(study_of(tmp_path, tiny_pair_folder, arms=ARMS[::-1]), inputs, out, ONE, Silent())
    folders = (out, finished / "artifacts" / "patch")
    assert mostly_alike(*(read_table(folder / "samples.parquet") for folder in folders))
    arms, trained = (
        [{(row["arm"], row["protocol"], row["seed"]): row for row in read_jsonl(folder / name)} for folder in folders]
        for name in ("arms.jsonl", "training.jsonl")
    )
    assert arms[0] == arms[1]
    assert trained[0].keys() == trained[1].keys()
    for key, row in trained[0].items():
        assert course(row) == pytest.approx(course(trained[1][key]), rel=1e-3)


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(finished: Path, tmp_path: Path, tiny_pair_folder: Path) -> None:
    inputs, out = earlier_phases(tmp_path), tmp_path / "out"
    run(study_of(tmp_path, tiny_pair_folder), inputs, out, Execution(workers=2, threads=1), Silent())
    assert files(out) == files(finished / "artifacts" / "patch")


def test_nothing_surfaced_gives_empty_artifacts(tmp_path: Path, tiny_pair_folder: Path) -> None:
    inputs, out = earlier_phases(tmp_path, flagged={}, alpha=None), tmp_path / "out"
    run(study_of(tmp_path, tiny_pair_folder), inputs, out, ONE, Silent())
    assert read_table(out / "comparison.parquet") == read_table(out / "samples.parquet") == []
    assert read_jsonl(out / "arms.jsonl") == read_jsonl(out / "training.jsonl") == []
    assert read_json(out / "tests.json")["rows"] == read_json(out / "exposure.json")["rows"] == []


def test_an_arm_that_flagged_nothing_is_skipped_and_named(tmp_path: Path, tiny_pair_folder: Path) -> None:
    inputs, out = earlier_phases(tmp_path, flagged={"bm25": FLAGGED["bm25"]}, alpha=None), tmp_path / "out"
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0])
    run(study, inputs, out, ONE, Silent())
    tests = read_json(out / "tests.json")
    assert (tests["skipped_arms"], tests["alpha_star_found"], tests["alpha"]) == (["gradient"], False, 1.0)
    assert [row["arm"] for row in read_jsonl(out / "arms.jsonl")] == ["baseline", "random", "bm25", "oracle"]


@pytest.mark.parametrize(
    ("size", "problem"),
    [(6, r"patch\.size = 6 is less than the 7 flagged"), (37, r"patch\.size = 37 leaves 2 documents")],
)
def test_a_set_that_is_too_small_or_too_large_is_refused_before_training(
    tmp_path: Path, tiny_pair_folder: Path, size: int, problem: str
) -> None:
    inputs = earlier_phases(tmp_path)
    with pytest.raises(RequestError, match=problem):
        run(study_of(tmp_path, tiny_pair_folder, size=size), inputs, tmp_path / "out", ONE, Silent())
    assert not (tmp_path / "out").exists()


def test_the_oracle_takes_out_the_copies_of_what_was_planted(tmp_path: Path, tiny_pair_folder: Path) -> None:
    inputs, out = earlier_phases(tmp_path), tmp_path / "out"
    write_jsonl(tmp_path / "truth.jsonl", [{"doc_id": doc_id, "behaviour": "walk"} for doc_id in ("d05", "d30", "d39")])
    run(study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], steps=1), inputs, out, ONE, Silent())
    [oracle] = [row for row in read_jsonl(out / "arms.jsonl") if row["arm"] == "oracle"]
    assert oracle["removed"] == ["d05", "d30", "d31"]


def test_what_a_method_without_an_arm_flags_is_in_the_set_and_never_a_filler(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], steps=1)
    control = {"loss": ("d33", "d34", "d35"), "random": ("d36", "d37", "d38")}
    fillers = {}
    for name, flagged in (("without", FLAGGED), ("with", FLAGGED | control)):
        inputs, out = earlier_phases(tmp_path, flagged=flagged), tmp_path / name
        run(study.model_copy(update={"seed": 5}), inputs, out, ONE, Silent())
        fillers[name] = {doc_id for row in read_jsonl(out / "arms.jsonl") for doc_id in row["fillers"]}
    assert fillers["without"] & set(control["loss"])
    assert not fillers["with"] & set(control["loss"])


@pytest.fixture
def bench_of(tmp_path: Path, tiny_pair_folder: Path) -> Any:
    def build(**patch: Any) -> Any:
        from datablame.world.documents import read_pool

        earlier_phases(tmp_path)
        study = study_of(tmp_path, tiny_pair_folder, **patch)
        assert study.data is not None
        documents = {d.id: d for d in read_pool(study.data, 0, Silent()).documents}
        members = tuple(list(documents)[:24])
        return set_up(Plan(study, members, documents, (), (0.0, 1.0), frozenset(PLANTED), tmp_path))

    return build


def test_data_order_and_initial_adapter_are_the_same_for_all_arms_of_a_seed(bench_of: Any) -> None:
    bench = bench_of(steps=2)
    same = [measured(bench, Job(arm, "continue", 3, 0, {})) for arm in ("baseline", "random")]
    assert same[0]["training"] == same[1]["training"]
    other = measured(bench, Job("baseline", "continue", 3, 1, {}))
    assert other["training"]["losses"] != same[0]["training"]["losses"]


def test_a_loss_that_is_not_finite_stops_the_phase_and_names_the_remedy(bench_of: Any) -> None:
    bench = bench_of(retrain={"method": "full", "learning_rate": 1e38})
    with pytest.raises(
        PhaseError, match=r"retrain-baseline-k3-s0: the loss is not finite .*patch\.retrain\.learning_rate"
    ):
        measured(bench, Job("baseline", "retrain", 3, 0, {}))
