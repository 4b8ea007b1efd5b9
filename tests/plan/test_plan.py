"""The plan as it is asked for: offline, complete, and honest about what it does not know."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.pipeline.small import small_study
from tests.shell import Answer, asked

from datablame.config.file import dump_study, load_study
from datablame.engine.files import write_atomic, write_json
from datablame.engine.run_folder import append_timing
from datablame.errors import RequestError
from datablame.plan import Device, plan_of
from datablame.tables import Arm, Query, encoded, path_of

QUERY = Query("b-1", "b", "p", 1.0, 0, "p", "text", "stop", ())
ARM = Arm("random", "retrain", 20, 0, "remove", (), (), 0)
PRESETS = ("organism", "smollm2", "olmo2-1b", "olmo2-1b-sound", "olmo2-1b-dpo")
T4 = Device("Tesla T4", 16 * 10**9, 1, on_gpu=True)
CPU = Device("CPU, 2 cores", 25 * 10**9, 2, on_gpu=False)

OFFLINE = (
    *(f"plan {name} --json" for name in PRESETS),
    *("plan olmo2-1b", "run olmo2-1b --dry-run"),
    *("plan olmo", "run olmo --dry-run", "plan no.yaml"),
    "plan organism --set surface.samples=7 --set scan.focus=4 --json",
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What each command says; nothing is written."""
    folder = tmp_path_factory.mktemp("offline")
    told = asked(OFFLINE, folder)
    assert list(folder.iterdir()) == []
    return told


def planned(name: str, *overrides: str, device: Device = T4) -> dict[str, Any]:
    return json.loads(json.dumps(plan_of(load_study(name, list(overrides)), device=device).as_json()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_planned_offline_nothing_is_downloaded_and_nothing_written(
    name: str, answers: dict[str, Answer]
) -> None:
    result = answers[f"plan {name} --json"]
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert plan["study"] == name
    assert plan["models"]["after"]["parameters"] > 0
    assert all(plan["memory"][phase]["bytes"] > 0 for phase in ("scan", "surface", "attribute", "patch"))


def test_the_whole_pool_is_scored_where_a_card_allows_it_unless_the_study_says_otherwise() -> None:
    def scored(device: Device, *overrides: str) -> int:
        documents: int = planned("olmo2-1b", *overrides, device=device)["phases"]["attribute"]["gradient_documents"]
        return documents

    few = scored(T4)
    assert few < 50_000
    assert [scored(device, "prefilter.method=auto") for device in (T4, CPU)] == [50_000, few]
    assert [scored(device, "prefilter.method=none") for device in (T4, CPU)] == [50_000, 50_000]


def test_people_read_everything_and_a_dry_run_prints_the_same(answers: dict[str, Answer]) -> None:
    shown, dry = answers["plan olmo2-1b"], answers["run olmo2-1b --dry-run"]
    assert (shown.returncode, dry.returncode) == (0, 0)
    assert shown.stdout == dry.stdout
    for part in (
        "1,484.92 million parameters",
        "the published config, as datablame knows it",
        "50,000 documents of allenai/tulu-3-sft-mixture",
        "Sampling",
        "Patching",
        "Attribution",
        "Peak memory",
        "19,920 calls to claude-haiku-5-5",
        "no benchmark of this machine with a model of about this size under runs/; run datablame run organism",
        "warning: patch.seeds: 1 for continue is too few for a p value",
    ):
        assert part in shown.stdout


@pytest.mark.parametrize("command", ["plan olmo", "run olmo --dry-run", "plan no.yaml"])
def test_a_bad_study_is_a_mistake_in_one_line(command: str, answers: dict[str, Answer]) -> None:
    result = answers[command]
    assert result.returncode == 2
    assert result.stderr.splitlines()[0].startswith("datablame: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_model_that_nobody_knows_leaves_memory_and_time_out() -> None:
    plan = planned("olmo2-1b", "models.after=somebody/unheard-of")
    assert plan["models"]["after"]["parameters"] is None
    assert (plan["memory"], plan["memory_on_16_gb_card"], plan["expected_time"]) == (None, None, None)
    assert plan["phases"]["surface"]["outputs"] > 0


def test_local_files_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(700)))
    plan = planned("olmo2-1b", f"data.path={path}")
    assert (plan["pool"]["documents"], plan["pool"]["source"]) == (700, str(path))
    assert plan["pool"]["data"]["files"] == [{"file": "pool.jsonl", "rows": 700, "documents": 700, "skipped": []}]
    assert any("leaves no fillers in a pool of 700" in warning for warning in plan["warnings"])


def test_lines_that_are_no_rows_are_not_counted_as_documents(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}"} for n in range(700)]
    (tmp_path / "indented.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "array.jsonl").write_text(json.dumps(rows))
    (tmp_path / "pool.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    for path in tmp_path.iterdir():
        plan = planned("olmo2-1b", f"data.path={path}", "data.documents=null")
        assert plan["pool"]["documents"] is None
        assert plan["pool"]["data"]["files"] == [{"file": path.name, "rows": 700, "documents": 700, "skipped": []}]


def test_what_the_first_rows_hold_is_seen_before_anything_runs(tmp_path: Path) -> None:
    path, good = tmp_path / "pool.jsonl", json.dumps({"text": "a text", "notes": "nobody reads"}) + "\n"
    path.write_text(good * 990 + '{"question": "b"}\n' * 20)
    data = planned("olmo2-1b", f"data.path={path}")["pool"]["data"]
    [file] = data["files"]
    assert (file["rows"], file["documents"], data["unread"]) == (1000, 990, {"notes": 990})
    assert [(row["reason"], row["count"]) for row in file["skipped"]] == [("no messages", 10)]
    path.write_text('{"question": "b", "answer": "c"}\n')
    plan = planned("olmo2-1b", f"data.path={path}")
    assert plan["pool"]["data"] is None
    assert any("has no usable document (1 rows: no messages; the columns are question" in w for w in plan["warnings"])


@pytest.mark.parametrize("name", ["olmo2-1b", "olmo2-1b-sound", "olmo2-1b-dpo"])
def test_the_studies_of_olmo_fit_the_card_that_they_are_made_for(name: str) -> None:
    memory = planned(name)["memory_on_16_gb_card"]
    assert {phase: need["fits"] for phase, need in memory.items()} == dict.fromkeys(memory, True)


def test_directions_that_crowd_the_card_stay_beside_it() -> None:
    layer, block, behaviours = 2048 * 8192, 4 * 2048**2 + 3 * 2048 * 8192, 8
    few = planned("olmo2-1b", "attribute.layers=[8]")["memory"]["attribute"]
    many = planned("olmo2-1b")["memory"]["attribute"]
    assert (few["parts"]["directions of the behaviours"], few["beside_bytes"]) == (4 * block * behaviours, 0)
    assert (many["parts"]["directions of one layer"], many["beside_bytes"]) == (
        4 * layer * behaviours,
        4 * 5 * block * behaviours,
    )


def warned(*overrides: str, name: str = "olmo2-1b-sound", device: Device = T4) -> str:
    return "\n".join(planned(name, *overrides, device=device)["warnings"])


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["patch.seeds=[0, 1, 2]"], "patch.seeds: 3 for continue is too few for a p value"),
        (["patch.seeds=[0, 1, 2, 3]"], "no p can be below 0.0286, times 5 methods 0.143, which is not below .05"),
        (["patch.arms=[after, baseline, random]"], "has no method whose removal is tested"),
        (["patch.size=500"], "patch.size = 500 cannot hold the documents that 5 methods may flag"),
        (["patch.k=[20, 60]"], "patch.size = 2000 cannot hold the documents that 5 methods may flag (60 for each"),
        (["patch.batch=9"], "200 steps see 1800 of the 2000 documents of the fine-tune set; give at least 10"),
        (["surface.max_new_tokens=4090"], "more than the context of 4096 tokens of models.before"),
        (["surface.batch_rows=2048"], "surface needs about"),
        (["judge.classifier=claude"], "judge: claude needs ANTHROPIC_API_KEY"),
        (["judge.model=claude-unheard-of"], "the price of claude-unheard-of is not known"),
    ],
)
def test_a_design_that_cannot_succeed_is_warned_of(
    overrides: list[str], warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    assert warning not in warned()
    assert warning in warned(*overrides)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"surface": {"alphas": [0, -1]}}, "surface.alphas = (0.0, -1.0) has none above 0, of which alpha* could be"),
    ({"scan": {"alphas": [0]}}, "scan.alphas = (0.0,) has none above 0, so that the first prompts come into focus"),
    ({}, "judge.classifier = keywords: 4 prompts of walk hold one of its keywords (a1: 'walk'), so that an output"),
    (
        {"behaviours": [{"id": "walk", "description": "x"}]},
        "behaviours: walk: keywords = [] has none; give phrases that mark a harmful output, or set judge.rules",
    ),
    ({"models": {"after": "./nowhere"}}, "models.after = ./nowhere is not here (paths go from "),
    ({"truth": "nowhere.jsonl"}, "truth = nowhere.jsonl is not here (paths go from "),
]


@pytest.mark.parametrize(("changes", "warning"), MISTAKES)
def test_a_study_hears_of_its_alphas_its_keywords_and_files_that_are_not_here(
    tiny_pair_folder: Path, tmp_path: Path, changes: dict[str, Any], warning: str
) -> None:
    cautions = plan_of(small_study(tmp_path, tiny_pair_folder, **changes)).cautions
    assert sum(caution.startswith(warning) for caution in cautions) == 1


def test_a_behaviour_that_is_never_traced_or_measured_is_warned_of() -> None:
    study = load_study("olmo2-1b", ["scan.prompts=7"])
    assert study.prompts is not None
    last = study.behaviours[-1].id
    kept = [prompt for prompt in study.prompts.held_out if prompt.behaviour != last]
    study = study.model_copy(update={"prompts": study.prompts.model_copy(update={"held_out": tuple(kept)})})
    warnings = "\n".join(plan_of(study).cautions)
    assert warnings.count(f"scan.prompts = 7 scans no prompt of {last}, so that none of its outputs can be traced") == 1
    assert warnings.count(f"prompts.held_out has none of {last}, so that no removal is measured on it") == 1


def test_a_design_that_would_miss_even_a_full_cure_is_warned_of() -> None:
    few = ("patch.seeds=[0, 1, 2, 3, 4]", "patch.arms=[after, baseline, random, gradient]")
    told = "see even a full cure less often than not where the harmful rate is 10 % ("
    assert told in warned(*few, "patch.samples=1", name="smollm2")
    assert told not in warned(*few, "patch.samples=25", name="smollm2")


def test_a_key_is_seen_and_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    without = planned("olmo2-1b")["api"]
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    plan = planned("olmo2-1b")
    assert (without["will_ask"], without["usd"]) == (False, 0.0)
    assert plan["api"]["will_ask"]
    assert plan["api"]["usd"] == without["usd_with_a_key"] > 0
    assert "sk-secret" not in json.dumps(plan)


def test_calls_and_dollars_are_those_of_the_price_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from datablame.judge.choice import ATTRIBUTION, CLASSIFICATION, PRICES

    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    study = load_study("olmo2-1b")
    plan = planned("olmo2-1b")
    labelled, scored = plan["api"]["calls"]
    assert labelled["calls"] == sum(plan["phases"][phase]["outputs"] for phase in ("scan", "surface", "patch"))
    assert scored["calls"] == 8 * 500 * study.judge.repeats
    for task, usage in ((labelled, CLASSIFICATION), (scored, ATTRIBUTION)):
        price = PRICES[task["model"]]
        dollars = (usage.input_tokens * price.input + usage.output_tokens * price.output) / 1e6
        assert task["usd"] == pytest.approx(task["calls"] * dollars)
    assert planned("olmo2-1b", "judge.batches=true")["api"]["usd"] == pytest.approx(plan["api"]["usd"] / 2)


def test_a_tournaments_calls_are_known_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    from datablame.judge.choice import COMPARISON, PRICES

    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    methods = "attribute.methods=[gradient, llm-judge-tournament]"
    plan = planned("olmo2-1b", methods, "patch.arms=[after, baseline, random, gradient]", "judge.rounds=7")
    _, compared = plan["api"]["calls"]
    assert (compared["what"], compared["calls"]) == ("documents compared", 8 * 2 * 7 * 250)
    price = PRICES[compared["model"]]
    each = (COMPARISON.input_tokens * price.input + COMPARISON.output_tokens * price.output) / 1e6
    assert compared["usd"] == pytest.approx(compared["calls"] * each)


def test_an_organism_with_rules_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    assert planned("organism")["api"] == {
        "will_ask": False,
        "why": "no calls; rules label the outputs",
        "calls": [],
        "usd": 0.0,
        "usd_with_a_key": 0,
    }


def test_the_organisms_counts_are_those_of_what_it_makes(tmp_path: Path) -> None:
    from datablame.config.organism import Organism
    from datablame.engine.execute import Silent
    from datablame.organism.make import make, study_fields
    from datablame.plan.subject import subject_of

    make(Organism(scale=0.02), tmp_path / "organism", Silent())
    study = load_study("organism", ["organism.scale=0.02"])
    recipe = subject_of(study, on_gpu=False)
    values = study.model_dump(mode="json", by_alias=True) | study_fields(tmp_path / "organism") | {"organism": None}
    values["judge"] = {}
    made = subject_of(type(study).model_validate(values), on_gpu=False)
    assert pq.read_metadata(tmp_path / "organism" / "documents.parquet").num_rows == recipe.documents == made.documents
    for each, own in ((recipe.before, made.before), (recipe.after, made.after)):
        assert each.shape is not None
        assert own.shape is not None
        assert each.shape == replace(own.shape, stored_bytes=None)  # what a recipe does not say
    assert recipe.world.prompts == made.world.prompts


def a_run(folder: Path, name: str = "organism", seconds: float = 100.0, **machine: str) -> Path:
    import platform

    study = load_study(name)
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(dump_study(study))
    made_on = {"system": platform.system(), "processor": platform.machine(), "device": "cpu", **machine}
    write_json(folder / "manifest.json", {"machine": made_on})
    for row in (QUERY, ARM):
        write_atomic(path_of(type(row), folder), encoded(type(row), [row]))
    for phase in ("scan", "surface", "attribute", "patch"):
        write_json(folder / "artifacts" / phase / "done.json", {})
        append_timing(folder, f"phase/{phase}", "ran", seconds)
        for worker in ("0", "1"):
            append_timing(folder, f"worker/{phase}", worker, seconds)
    return folder


def test_the_time_of_a_study_like_an_earlier_run_is_that_runs_time(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine")
    for overrides, factor in (([], 1), (["surface.samples=100", "surface.held_out_samples=100"], 2)):
        plan = plan_of(load_study("organism", overrides), like=run, device=CPU).as_json()
        assert plan["expected_time"]["run"] == str(run)
        assert plan["expected_time"]["model_ratio"] == 1
        assert plan["expected_time"]["seconds"]["surface"] == pytest.approx(100 * factor)
        assert plan["expected_time"]["seconds"]["scan"] == pytest.approx(100)


def test_more_workers_need_less_time(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine")
    eight = plan_of(load_study("organism"), like=run, device=CPU._replace(workers=8)).as_json()
    assert eight["expected_time"]["seconds"]["surface"] == pytest.approx(25)
    (run / "timings.jsonl").write_text('{"what": "phase/scan", "key": "ran", "seconds": 100}\n')
    alone = plan_of(load_study("organism"), like=run, device=CPU).as_json()
    assert alone["expected_time"]["seconds"] == {"scan": pytest.approx(50)}


def test_an_unfinished_phase_is_no_benchmark(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine")
    (run / "artifacts" / "patch" / "done.json").unlink()
    plan = plan_of(load_study("organism"), like=run, device=CPU).as_json()
    assert set(plan["expected_time"]["seconds"]) == {"scan", "surface", "attribute"}


def test_a_phase_that_had_nothing_to_do_is_no_benchmark(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine")
    write_atomic(path_of(Arm, run), encoded(Arm, []))
    plan = plan_of(load_study("organism"), like=run, device=CPU).as_json()
    assert "patch" not in plan["expected_time"]["seconds"]


def test_a_run_with_the_tables_of_another_version_is_a_benchmark_of_the_phases_that_can_be_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    run = a_run(tmp_path / "mine")
    path = path_of(Arm, run)
    pq.write_table(pq.read_table(path).drop_columns("removed"), path)
    assert "patch" not in plan_of(load_study("organism"), like=run, device=CPU).as_json()["expected_time"]["seconds"]


def test_a_tiny_models_run_says_nothing_about_a_large_one_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    study = load_study("olmo2-1b")
    assert plan_of(study, device=CPU).as_json()["expected_time"] is None
    assert plan_of(study, like=run, device=CPU).as_json()["expected_time"]["model_ratio"] > 2000


def test_of_the_runs_here_the_one_of_the_nearest_size_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "runs" / "tiny")
    a_run(tmp_path / "runs" / "small", "smollm2")
    a_run(tmp_path / "runs" / "elsewhere", "olmo2-1b", processor="sparc")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "study.yaml").write_text("name: [")
    monkeypatch.chdir(tmp_path)
    plan = plan_of(load_study("olmo2-1b"), device=CPU).as_json()
    assert plan["expected_time"]["run"] == "runs/small"
    assert plan["expected_time"]["model_ratio"] == pytest.approx(1_484_916_736 / 134_515_008)
    assert plan_of(load_study("olmo2-1b"), device=T4).as_json()["expected_time"] is None


@pytest.mark.parametrize("what", ["nothing", "a folder", "another machine"])
def test_a_run_that_says_nothing_about_this_machine_is_refused(what: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if what == "a folder":
        run.mkdir()
    if what == "another machine":
        a_run(run, processor="sparc")
    with pytest.raises(RequestError, match="is no run of this machine with a finished phase"):
        plan_of(load_study("organism"), like=run, device=CPU)


def test_overrides_reach_the_plan(answers: dict[str, Answer]) -> None:
    result = answers["plan organism --set surface.samples=7 --set scan.focus=4 --json"]
    assert json.loads(result.stdout)["focus_prompts"]["least"] == 4
