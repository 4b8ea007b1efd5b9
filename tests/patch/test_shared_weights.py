from pathlib import Path
from typing import Any

import pytest
import torch
from datablame.patch.bench import Bench, Job, Plan, set_up
from datablame.patch.run import run
from tests.patch.measured import measured
from tests.patch.test_run import ONE, PLANTED, earlier_phases, files, mostly_alike, study_of

from datablame.engine.execute import Silent
from datablame.models.load import load_model
from datablame.study.schema import ModelRef, Study
from datablame.tables import Prompt
from datablame.world.documents import read_pool

IDS = torch.tensor([[1, 2, 50, 60, 3], [4, 9, 8, 7, 70]])
LORA: dict[str, Any] = {"method": "lora", "learning_rate": 1e-2}


def bench_of(study: Study, folder: Path) -> Bench:
    earlier_phases(folder)
    assert study.data is not None
    documents = {document.id: document for document in read_pool(study.data, 0, Silent()).documents}
    prompt = Prompt("h1", "walk", "held-out", "which walk ?")
    members = tuple(list(documents)[:24])
    return set_up(Plan(study, members, documents, ((prompt, 2),), (0.0, 1.0), frozenset(PLANTED), folder))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def places(model: Any) -> set[int]:
    return {parameter.data_ptr() for parameter in model.parameters()}


def test_lora_from_before_trains_on_the_weights_of_before_and_leaves_them_alone(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], retrain=LORA)
    bench = bench_of(study, tmp_path)
    start = logits(bench.before)
    assert places(bench.trainees["retrain"]) == places(bench.before)
    made = [measured(bench, Job(arm, "retrain", 3, 0, {})) for arm in ("baseline", "again")]
    assert made[0]["training"]["weight_change_norm"] > 0
    assert made[0]["rows"] == made[1]["rows"]
    assert torch.equal(logits(bench.before), start)
    assert torch.equal(logits(bench.trainees["retrain"]), start)


def test_before_is_the_base_while_an_adapter_is_trained_on_its_weights(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at where it matters: when the trained model is sampled against it."""
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], retrain=LORA)
    bench = bench_of(study, tmp_path)
    start, seen = logits(bench.before), []

    def look(model: Any, before: Any, *_: Any, **__: Any) -> list[Any]:
        seen.append((logits(model), logits(before)))
        return []

    monkeypatch.setattr("datablame.surface.draw.draw_requests", look)
    measured(bench, Job("baseline", "retrain", 3, 0, {}))
    [(trained, before)] = seen
    assert torch.equal(before, start)
    assert (trained - start).abs().max() > 1e-2


def test_after_is_loaded_only_where_it_is_trained(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datablame.models import load, pair

    loaded: list[str] = []

    def counted(reference: ModelRef, **options: Any) -> Any:
        loaded.append(Path(reference.path).name)
        return load_model(reference, **options)

    monkeypatch.setattr(pair, "load_model", counted)
    monkeypatch.setattr(load, "load_model", counted)
    bench_of(study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], retrain=LORA), tmp_path)
    assert loaded == ["before"]
    loaded.clear()
    bench_of(study_of(tmp_path, tiny_pair_folder, protocols=["retrain", "continue"], retrain=LORA), tmp_path)
    assert loaded == ["before", "after"]


def test_a_micro_batch_changes_no_arm(tmp_path: Path, tiny_pair_folder: Path) -> None:
    rows = []
    for micro_batch in (None, 2):
        settings: dict[str, Any] = {"protocols": ["continue"], "headline": "continue", "micro_batch": micro_batch}
        bench = bench_of(study_of(tmp_path, tiny_pair_folder, **settings), tmp_path)
        made = measured(bench, Job("baseline", "continue", 3, 0, {}))
        rows.append((made["rows"], made["training"]["final_loss"]))
    assert mostly_alike(rows[0][0], rows[1][0])
    assert rows[0][1] == pytest.approx(rows[1][1], rel=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_protocols_run_in_16_bits(tmp_path: Path, tiny_pair_folder: Path, dtype: str) -> None:
    """LoRA trains float32 adapters on the 16-bit weights; all weights are trained in float32."""
    models = {name: {"path": str(tiny_pair_folder / name), "dtype": dtype} for name in ("before", "after")}
    for retrain in (LORA, {"method": "full", "learning_rate": 1e-3}):
        values = study_of(tmp_path, tiny_pair_folder, retrain=retrain).model_dump(mode="json", by_alias=True)
        bench = bench_of(Study.model_validate({**values, "models": models}), tmp_path)
        assert bench.before.dtype is getattr(torch, dtype)
        full = retrain["method"] == "full"
        assert bench.trainees["retrain"].dtype is (torch.float32 if full else getattr(torch, dtype))
        for protocol in bench.trainees:
            made = measured(bench, Job("baseline", protocol, 3, 0, {}))
            assert len(made["rows"]) == 4
            assert made["training"]["losses"]


def test_a_study_whose_after_is_an_adapter_runs_both_protocols(tmp_path: Path, tiny_pair_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_model(ModelRef(path=str(tiny_pair_folder / "before")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        owner = get_peft_model(
            base, LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        )
    owner.save_pretrained(tmp_path / "adapter")
    study = study_of(tmp_path, tiny_pair_folder, retrain=LORA, arms=["untrained", "baseline", "random"], steps=2)
    values = study.model_dump(mode="json", by_alias=True)
    values["models"]["after"]["path"] = str(tmp_path / "adapter")
    study = Study.model_validate(values)
    bench = bench_of(study, tmp_path)
    assert places(bench.trainees["retrain"]) == places(bench.before)
    assert not places(bench.trainees["continue"]) & places(bench.before)
    merged = logits(bench.trainees["continue"])
    assert torch.equal(logits(bench.before), logits(load_model(ModelRef(path=str(tiny_pair_folder / "before")))))
    measured(bench, Job("baseline", "continue", 3, 0, {}))
    assert torch.equal(logits(bench.trainees["continue"]), merged)
    values["patch"]["arms"] = [*values["patch"]["arms"], "bm25"]
    run(Study.model_validate(values), earlier_phases(tmp_path), tmp_path / "out", ONE, Silent())
    assert "samples.parquet" in files(tmp_path / "out")
