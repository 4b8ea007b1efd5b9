from pathlib import Path
from typing import Any

import pytest
import torch
from tests.patch.small import QUICK, attributed, files, measured, patched, state_of, study_of

from datablame.config.schema import ModelRef, Study
from datablame.models.load import load_model
from datablame.patch import measure

IDS = torch.tensor([[1, 2, 50, 60, 3], [4, 9, 8, 7, 70]])
LORA: dict[str, Any] = {"method": "lora", "learning_rate": 1e-2}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=IDS).logits
    return out


def addresses(model: Any) -> set[int]:
    return {parameter.data_ptr() for parameter in model.parameters()}


def test_lora_from_before_trains_on_the_weights_of_before_and_leaves_them_alone(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], retrain=LORA)
    state = state_of(attributed(study, tmp_path / "run"), prompts=2)
    start = logits(state.before)
    assert addresses(state.trainees["retrain"]) == addresses(state.before)
    results = [measured(state, arm, "retrain") for arm in ("baseline", "again")]
    assert results[0]["training"]["weight_change_norm"] > 0
    assert results[0]["samples"] == results[1]["samples"]
    assert torch.equal(logits(state.before), start)
    assert torch.equal(logits(state.trainees["retrain"]), start)


def test_before_is_the_base_while_an_adapter_is_trained_on_its_weights(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at where it matters: when the trained model is sampled against it."""
    study = study_of(tmp_path, tiny_pair_folder, protocols=["retrain"], seeds=[0], retrain=LORA)
    state = state_of(attributed(study, tmp_path / "run"), prompts=2)
    start, seen = logits(state.before), []

    def look(model: Any, before: Any, *_: Any, **__: Any) -> list[Any]:
        seen.append((logits(model), logits(before)))
        return []

    monkeypatch.setattr("datablame.patch.measure.draw", look)
    measured(state, "baseline", "retrain")
    [(trained, before)] = seen
    assert torch.equal(before, start)
    assert (trained - start).abs().max() > 1e-2


def test_peft_loads_an_arms_adapter_and_says_what_the_arm_said(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    settings: dict[str, Any] = {**QUICK, "continue": LORA}
    world, seen = attributed(study_of(tmp_path, tiny_pair_folder, **settings), tmp_path / "run"), []

    def look(model: Any, *_: Any, **__: Any) -> list[Any]:
        seen.append(logits(model))
        return []

    monkeypatch.setattr("datablame.patch.measure.draw", look)
    measured(state_of(world, prompts=2), "baseline", "continue")
    base = load_model(ModelRef(path=str(tiny_pair_folder / "after")))
    start = logits(base)
    loaded = PeftModel.from_pretrained(base, world.root / "artifacts/patch.part/adapters/continue-baseline-k3-s0")
    assert (logits(loaded) - seen[0]).abs().max() < 1e-5
    assert (seen[0] - start).abs().max() > 1e-2


def test_after_is_loaded_only_where_it_is_trained(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counted(reference: ModelRef, **options: Any) -> Any:
        loaded.append(Path(reference.path).name)
        return load_model(reference, **options)

    monkeypatch.setattr(measure, "load_model", counted)
    for protocols, expected in ((["retrain"], ["before"]), (["retrain", "continue"], ["before", "after"])):
        study = study_of(tmp_path, tiny_pair_folder, protocols=protocols, retrain=LORA)
        state_of(attributed(study, tmp_path / f"run-{len(protocols)}"))
        assert loaded == expected
        loaded.clear()


def test_a_micro_batch_changes_no_arm(tmp_path: Path, tiny_pair_folder: Path) -> None:
    results = []
    for micro_batch in (None, 2):
        settings: dict[str, Any] = {"protocols": ["continue"], "headline": "continue", "micro_batch": micro_batch}
        world = attributed(study_of(tmp_path, tiny_pair_folder, **settings), tmp_path / f"run-{micro_batch}")
        results.append(measured(state_of(world, prompts=2), "baseline", "continue"))
    one, other = results
    texts = [(a["text"], b["text"]) for a, b in zip(one["samples"], other["samples"], strict=True)]
    assert [{**row, "text": ""} for row in one["samples"]] == [{**row, "text": ""} for row in other["samples"]]
    # A draw at the border of two tokens may turn on some CPU.
    assert sum(a == b for a, b in texts) >= 0.75 * len(texts)
    assert one["training"]["final_loss"] == pytest.approx(other["training"]["final_loss"], rel=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_protocols_run_in_16_bits(tmp_path: Path, tiny_pair_folder: Path, dtype: str) -> None:
    """LoRA trains float32 adapters on the 16-bit weights; all weights are trained in float32."""
    models = {name: {"path": str(tiny_pair_folder / name), "dtype": dtype} for name in ("before", "after")}
    for retrain in (LORA, {"method": "full", "learning_rate": 1e-3}):
        values = study_of(tmp_path, tiny_pair_folder, retrain=retrain).model_dump(mode="json", by_alias=True)
        study = Study.model_validate({**values, "models": {**models, "device": "cpu"}})
        state = state_of(attributed(study, tmp_path / f"run-{retrain['method']}"), prompts=2)
        assert state.before.dtype is getattr(torch, dtype)
        full = retrain["method"] == "full"
        assert state.trainees["retrain"].dtype is (torch.float32 if full else getattr(torch, dtype))
        for protocol in state.trainees:
            result = measured(state, "baseline", protocol)
            assert len(result["samples"]) == 4
            assert result["training"]["losses"]


def test_a_study_whose_after_is_an_adapter_runs_both_protocols(tmp_path: Path, tiny_pair_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_model(ModelRef(path=str(tiny_pair_folder / "before")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        owner = get_peft_model(
            base, LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        )
    owner.save_pretrained(tmp_path / "adapter")
    study = study_of(
        tmp_path, tiny_pair_folder, retrain=LORA, arms=["after", "baseline", "random", "bm25"], seeds=[0], steps=2
    )
    values = study.model_dump(mode="json", by_alias=True)
    values["models"]["after"]["path"] = str(tmp_path / "adapter")
    world = attributed(Study.model_validate(values), tmp_path / "run")
    state = state_of(world)
    assert addresses(state.trainees["retrain"]) == addresses(state.before)
    assert not addresses(state.trainees["continue"]) & addresses(state.before)
    merged = logits(state.trainees["continue"])
    assert torch.equal(logits(state.before), logits(load_model(ModelRef(path=str(tiny_pair_folder / "before")))))
    measured(state, "baseline", "continue")
    assert torch.equal(logits(state.trainees["continue"]), merged)
    patched(world)
    assert "samples.parquet" in files(world.root)
