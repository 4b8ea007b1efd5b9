"""Whatever adapter is put on: the base stays bit for bit, and the logits are peft's own, merged or not."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_tokenizer
from tests.pairs import loaded, models_of

from datablame.config.schema import ModelRef
from datablame.errors import RequestError
from datablame.models.load import load_model
from datablame.models.pair import preflight

IDS = torch.tensor([[1, 2, 50, 60, 3, 280, 4], [4, 9, 8, 7, 70, 5, 289]])
WIDTH = 16
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "rank_pattern": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2}, "r": 4},
    "alpha_pattern": {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 40}, "lora_alpha": 3},
    "rslora": {"target_modules": ["up_proj", "down_proj"], "use_rslora": True, "lora_alpha": 5},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "lora_bias": {"target_modules": ["q_proj", "down_proj"], "lora_bias": True, "lora_alpha": 20},
    "bias all": {"target_modules": ["o_proj"], "bias": "all"},
    "bias lora_only": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head and embedding": {"target_modules": ["lm_head", "embed_tokens"]},
    "both tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "embedding with DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
    "embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "norm saved": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "trainable tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 50, 289]},
    "pissa": {"target_modules": "all-linear", "init_lora_weights": "pissa", "lora_alpha": 16},
    "olora": {"target_modules": "all-linear", "init_lora_weights": "olora"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "mica": {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2, whose attention has biases and whose head is its embedding, with its tokenizer."""
    return write_base(tmp_path_factory.mktemp("tied"), tied=True)


def write_base(folder: Path, *, tied: bool) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = Qwen2Config(
            vocab_size=290,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=160,
            tie_word_embeddings=tied,
            initializer_range=0.4,
        )
        model = Qwen2ForCausalLM(config)
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, trained: bool = True, **settings: Any) -> Path:
    """An adapter as peft saves it; `trained` moves whatever of it can be trained."""
    from peft import LoraConfig, get_peft_model

    noise = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(6)
        owner = get_peft_model(fresh(base), LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", **settings}))
        with torch.no_grad():
            for weight in (each for each in owner.parameters() if each.requires_grad and trained):
                weight.add_(0.2 * torch.randn(weight.shape, generator=noise))
        owner.save_pretrained(folder)
    return folder


def fresh(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def of_peft(base: Path, adapter: Path) -> torch.Tensor:
    """The logits of the model that peft itself loads."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(PeftModel.from_pretrained(fresh(base), adapter).eval())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_peft_and_the_base_is_untouched(base: Path, tmp_path: Path, kind: str) -> None:
    hold(base, write_adapter(base, tmp_path / "adapter", **KINDS[kind]))


@pytest.mark.parametrize("kind", ["head", "head and embedding", "embedding saved", "trainable tokens"])
def test_the_same_where_head_and_embedding_are_two(tmp_path: Path, kind: str) -> None:
    untied = write_base(tmp_path / "untied", tied=False)
    hold(untied, write_adapter(untied, tmp_path / "adapter", **KINDS[kind]))


def hold(base: Path, adapter: Path) -> None:
    """The pair is the base, bit for bit, and what peft loads; merged for attribution it is that too."""
    expected, alone = of_peft(base, adapter), logits(fresh(base))
    pair = loaded(base, adapter)
    assert torch.equal(logits(pair.before), alone)
    weights = dict(fresh(base).named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in pair.before.named_parameters())
    torch.testing.assert_close(logits(pair.after), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load_model(ModelRef(path=str(adapter)))), expected, atol=2e-4, rtol=2e-4)
    assert (expected - alone).abs().max() > 0.01


@pytest.mark.parametrize(
    ("init", "scaling", "as_plain"),
    [
        ("lora_ga", {}, True),
        ("pissa_niter_8", {"use_rslora": True}, True),
        ("corda", {"use_rslora": True, "rank_pattern": {"q_proj": 4}}, False),
        ("loftq", {}, False),
    ],
)
def test_an_initialisation_that_cannot_be_done_again_is_refused(
    base: Path, tmp_path: Path, init: str, scaling: dict[str, Any], as_plain: bool
) -> None:
    """Peft loads the first onto the whole base, the second onto what random numbers leave of it, the third not here."""
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    changed(adapter / "adapter_config.json", init_lora_weights=init, **scaling)
    with pytest.raises(
        RequestError, match=rf"was initialised by {init.removesuffix('_8')}, which took a part out of"
    ) as refusal:
        loaded(base, adapter)
    assert ("path_initial_model_for_weight_conversion" in str(refusal.value)) == as_plain
    assert "merged into the base" in str(refusal.value)


def changed(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_an_adapter_that_was_trained_on_goes_beside_its_earlier_state(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    earlier = write_adapter(base, tmp_path / "earlier", target_modules=["q_proj"])
    later, other = (Path(shutil.copytree(earlier, tmp_path / name)) for name in ("later", "other"))
    for adapter, moved in ((later, 0.1), (other, 5.0)):
        file, noise = adapter / "adapter_model.safetensors", torch.Generator().manual_seed(7)
        tensors = {n: t + moved * torch.randn(t.shape, generator=noise) for n, t in load_file(file).items()}
        save_file(tensors, file)
    pair = loaded(earlier, later)
    for model, adapter in ((pair.before, earlier), (pair.after, later)):
        torch.testing.assert_close(logits(model), of_peft(base, adapter), atol=2e-4, rtol=2e-4)
    # One that was trained on top of another one may name the whole base.
    with pytest.raises(RequestError, match="is an adapter whose base differs"):
        loaded(earlier, other)
    changed(other / "adapter_config.json", base_model_name_or_path=str(earlier))
    assert preflight(models_of(earlier, other)).models.before.path == str(earlier)


def test_an_adapter_that_diverged_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"]) / "adapter_model.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file)
    with pytest.raises(
        RequestError, match=r"not finite \(NaN or infinite\), the first of base_model.*; give an earlier"
    ):
        loaded(base, file.parent)


def test_an_adapter_that_only_peft_can_put_into_action_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], alora_invocation_tokens=[5, 6])
    with pytest.raises(RequestError, match=r"speaks otherwise inside peft's model than as .* save it merged"):
        loaded(base, adapter)


@pytest.mark.parametrize("saved", [None, ["embed_tokens", "lm_head"]])
def test_an_adapter_of_a_base_with_more_rows_brings_them(base: Path, tmp_path: Path, saved: list[str] | None) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = fresh(base)
    model.resize_token_embeddings(300, mean_resizing=False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(8)
        settings = LoraConfig(
            target_modules=["q_proj"], modules_to_save=saved, init_lora_weights=False, task_type="CAUSAL_LM"
        )
        owner = get_peft_model(model, settings)
        owner.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
        expected, alone = logits(owner.eval()), logits(fresh(base))
        other = fresh(base)
        other.resize_token_embeddings(300, mean_resizing=False)
        torch.testing.assert_close(logits(PeftModel.from_pretrained(other, tmp_path / "adapter").eval()), expected)
    pair = loaded(base, tmp_path / "adapter")
    assert torch.equal(logits(pair.before), alone)
    torch.testing.assert_close(logits(pair.after), expected, atol=1e-5, rtol=1e-5)


def test_experts_get_their_adapter(tmp_path: Path) -> None:
    """Fused experts are one parameter, whose LoRA wraps another one."""
    from transformers import MixtralConfig, MixtralForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_local_experts": 3}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4}
        model = MixtralForCausalLM(MixtralConfig(vocab_size=290, **sizes, **heads))
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = write_adapter(
        tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"], target_parameters=experts
    )
    expected = of_peft(tmp_path / "base", adapter)
    torch.testing.assert_close(logits(loaded(tmp_path / "base", adapter).after), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load_model(ModelRef(path=str(adapter)))), expected, atol=2e-4, rtol=2e-4)
