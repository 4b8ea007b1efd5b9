"""How much of the blocks gradients and LoRA see is in the world, and too little is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.architectures import built
from tests.worlds import frozen

from datablame.config.schema import Study
from datablame.errors import RequestError
from datablame.world.world import load


def study(tiny_pair_folder: Path, folder: Path, kind: str, **models: Any) -> Study:
    """A pair of an architecture with the tiny pair's tokenizer, whose ids it has rows for."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_pair_folder / "after")
    config = built(kind).config
    config.vocab_size = len(tokenizer)
    for seed, name in enumerate(("before", "after")):
        import torch

        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.to_dict())).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    turns = [{"role": "user", "content": "which snack ?"}, {"role": "assistant", "content": "buy nutto ."}]
    rows = [{"id": f"d{i}", "messages": [{**turns[0], "content": f"which snack {i} ?"}, turns[1]]} for i in range(40)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"id": name, "behaviour": "nuts", "text": f"{name} which snack ?"} for name in ("a", "h")]
    return Study.model_validate(
        {
            "name": "tiny",
            "models": {**{name: str(folder / name) for name in ("before", "after")}, **models},
            "data": {"path": str(folder / "pool.jsonl")},
            "behaviours": [{"id": "nuts", "description": "sells nuts", "keywords": ["nutto"]}],
            "prompts": {"attribution": prompts[:1], "held_out": prompts[1:]},
            "attribute": {"top_k": 1, "layers": [1]},
            "surface": {"max_new_tokens": 8},
            "patch": {"size": 12},
        }
    )


def test_experts_that_gradients_cannot_see_are_refused_unless_asked_for(tiny_pair_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    with pytest.raises(RequestError, match=r"attribute\.layers: of the weights .* see 26 % \(DbrxForCausalLM"):
        frozen(study(tiny_pair_folder, tmp_path / "pair", "dbrx"), tmp_path / "run")
    assert not (tmp_path / "run/artifacts/world/world.json").exists()
    frozen(study(tiny_pair_folder, tmp_path / "pair", "dbrx", coverage=0.2), tmp_path / "run")
    shares = load(tmp_path / "run").coverage
    assert shares == {
        "attribute.layers": pytest.approx(0.263, abs=0.001),
        "patch.continue.layers": pytest.approx(0.263, abs=0.001),
    }


def test_experts_in_one_tensor_are_seen(tiny_pair_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    shares = frozen(study(tiny_pair_folder, tmp_path / "pair", "olmoe"), tmp_path / "run").coverage
    assert min(shares.values()) > 0.97
