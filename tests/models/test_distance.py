"""How far apart two checkpoints are, by hand from their files; what is no difference, or only rounding, is refused."""

import json
import math
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_model
from tests.models.test_adapter_kinds import KINDS, base, fresh, write_adapter
from tests.models.test_gguf import write_llama
from tests.pairs import loaded, models_of

from datablame.errors import RequestError
from datablame.models.distance import _mostly_alike, _other_settings, measured
from datablame.models.pair import preflight
from datablame.models.tokenizer_file import PROBES
from datablame.tables import Distance

__all__ = ["base"]

PROMPTS = ("name a calm walk .", "how do i water a fern ?")
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def distance(before: Path, after: Path, *dtypes: str) -> Distance:
    """Of two folders, held in these types."""
    models = models_of(before, after)
    for side, dtype in zip(("before", "after"), dtypes, strict=False):
        models = models.model_copy(update={side: getattr(models, side).model_copy(update={"dtype": dtype})})
    return measured(models, models, PROMPTS)


def saved_as(folder: Path, target: Path, dtype: torch.dtype, **moved: float) -> Path:
    """A copy of a checkpoint in another type; `moved` adds noise of that size to its matrices before."""
    noise = torch.Generator().manual_seed(3)
    model = fresh(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(moved.get("by", 0.0) * torch.randn(weight.shape, generator=noise))
    model.to(dtype).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def by_hand(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, weight in before.items():
        block = re.match(r"model\.layers\.\d+", name)
        row = sums[block[0] if block else name.removesuffix(".weight")]
        for index, tensor in enumerate((weight, after[name], after[name].double() - weight.double())):
            row[index] += float(tensor.double().square().sum())
    return {layer: [math.sqrt(each) for each in row] for layer, row in sums.items()}


def largest_difference(before: Any, after: Any, tokenizer: Any) -> float:
    """Of log-probabilities by a direct forward pass."""
    texts = [
        *(
            tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False)
            for p in PROMPTS
        ),
        PROBES[0],
    ]
    largest = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        one, other = (model(ids).logits[..., : len(tokenizer)].log_softmax(-1) for model in (before, after))
        largest = max(largest, float((one - other).abs().max()))
    return largest


def test_another_number_of_blocks_is_refused(folder: Path) -> None:
    tiny_model(seed=3, layers=3).save_pretrained(folder / "after")
    with pytest.raises(
        RequestError, match=r"has 3 blocks and models\.before = .* has 2, so that it was not trained from"
    ):
        distance(folder / "before", folder / "after")


def test_an_encoder_is_refused(folder: Path) -> None:
    config = folder / "after" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"is_causal": False}))
    with pytest.raises(RequestError, match=r"^models\.after changes what it says after a token with what follows it"):
        distance(folder / "before", folder / "after")


@pytest.mark.parametrize(("moved", "alike"), [(slice(3, 4), True), (slice(1, None), False)])
def test_a_token_that_goes_to_another_expert_is_not_looking_ahead(moved: slice, alike: bool) -> None:
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(5))
    others = logits.clone()
    others[moved] *= 1.05
    assert _mostly_alike(logits, others, 1e-3) == alike


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_window_layers": 1, "router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.5, "sliding_window": 9}, ()),
        ({"router_scaling_factor": 2.0, "rope_theta": 5.0}, ("rope_theta", "router_scaling_factor")),
        ({"sliding_window": 9, "layer_types": ["sliding_attention"]}, ("layer_types", "sliding_window")),
    ],
)
def test_settings_that_change_nothing_are_not_told(
    tiny_pair_folder: Path, settings: dict[str, Any], told: tuple[str, ...]
) -> None:
    pair = loaded(tiny_pair_folder / "before", tiny_pair_folder / "after")
    for model, values in ((pair.before, dict.fromkeys(settings)), (pair.after, settings)):
        for name, value in ({"layer_types": ["full_attention"]} | values).items():
            setattr(model.config, name, value)
    assert _other_settings(pair) == told


@pytest.mark.parametrize("side", ["before", "after"])
def test_weights_that_are_no_numbers_are_named(folder: Path, side: str) -> None:
    file = folder / side / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = math.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        RequestError, match=rf"models\.{side} = .* not finite \(NaN .*, the first of model\.layers\.1, as"
    ):
        distance(folder / "before", folder / "after")


def test_norms_by_layer_are_those_of_the_files(tiny_pair_folder: Path) -> None:
    before, after = tiny_pair_folder / "before", tiny_pair_folder / "after"
    found = distance(before, after)
    expected = by_hand(*(load_file(folder / "model.safetensors") for folder in (before, after)))
    assert {row.layer: [row.before, row.after, row.difference] for row in found.layers} == {
        layer: pytest.approx(norms, rel=1e-5) for layer, norms in expected.items()
    }
    assert (found.rounding, found.before.precision, found.after.precision) == (0.0, "float32", "float32")
    pair = loaded(before, after)
    assert found.log_p == pytest.approx(largest_difference(pair.before, pair.after, pair.tokenizer), rel=1e-3)


@pytest.mark.parametrize("kind", ["plain", "head", "embedding", "lora_bias", "dora", "pissa", "trainable tokens"])
def test_an_adapter_is_as_far_from_its_base_as_its_merged_weights(base: Path, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    adapter = write_adapter(base, tmp_path / "adapter", **KINDS[kind])
    whole = fresh(base)
    if whole.lm_head.weight is whole.model.embed_tokens.weight:
        whole.lm_head.weight = torch.nn.Parameter(whole.lm_head.weight.detach().clone())
    for module in (each for each in whole.modules() if isinstance(each, torch.nn.Linear)):
        if getattr(module, "bias", None) is None:
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features))
    start = {name: weight.detach().clone() for name, weight in whole.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = dict(PeftModel.from_pretrained(whole, adapter).merge_and_unload().named_parameters())
    differences = {layer: row[2] for layer, row in by_hand(start, merged).items()}
    found = {row.layer: row.difference for row in distance(base, adapter).layers}
    # A bias that only the adapter brings is in no layer of the base.
    if kind != "lora_bias":
        assert found == {layer: pytest.approx(differences[layer], rel=1e-3, abs=1e-5) for layer in found}
    assert sum(found.values()) > 0.1


def without_b(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = {name: t * 0 if "lora_B" in name else t for name, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("kind", ["plain", "dora", "pissa", "olora", "gaussian", "trainable tokens", "head saved"])
def test_an_adapter_that_was_never_trained_is_refused(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", trained=False, **KINDS[kind])
    with pytest.raises(RequestError) as refusal:
        distance(base, adapter)
    assert str(refusal.value).startswith(f"models.after = {adapter} has the same weights as models.before = {base}, so")


def test_an_adapter_whose_b_is_zero_and_equal_folders_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **KINDS["plain"])
    without_b(adapter)
    copied = saved_as(base, tmp_path / "copy", torch.float32)
    for after in (adapter, base, copied):
        with pytest.raises(RequestError, match=r"has the same weights as models\.before = .*; give the"):
            distance(base, after)


@pytest.mark.parametrize(
    ("before", "after"), [("float32", "bfloat16"), ("float16", "float32"), ("bfloat16", "float16")]
)
def test_one_checkpoint_in_two_types_is_refused_as_rounding(
    base: Path, tmp_path: Path, before: str, after: str
) -> None:
    one, other = (saved_as(base, tmp_path / name, TYPES[name]) for name in (before, after))
    with pytest.raises(RequestError) as refusal:
        distance(one, other)
    coarse = "bfloat16" if "bfloat16" in (before, after) else "float16"
    assert f"before is {before}, after is {after}, and they are " in str(refusal.value)
    assert f"where rounding to {coarse} alone makes " in str(refusal.value)
    with pytest.raises(RequestError, match="where rounding to bfloat16 alone makes"):
        distance(base, base, "float32", "bfloat16")


def test_a_cast_that_loses_nothing_is_no_difference(base: Path, tmp_path: Path) -> None:
    """Every bfloat16 is a float32: what was cast back is the same checkpoint."""
    short = saved_as(base, tmp_path / "short", torch.bfloat16)
    long = saved_as(short, tmp_path / "long", torch.float32)
    with pytest.raises(RequestError, match="has the same weights"):
        distance(short, long)


@pytest.mark.parametrize("by", [1e-5, 1e-2, 0.1])
def test_a_difference_that_is_not_rounding_is_served_with_what_rounding_makes(
    base: Path, tmp_path: Path, by: float
) -> None:
    """Smaller than rounding can be, training that began at the rounded weights; or larger than it."""
    short = saved_as(base, tmp_path / "short", torch.bfloat16)
    after = saved_as(short, tmp_path / "after", torch.float32, by=by)
    found = distance(short, after)
    weights = load_file(short / "model.safetensors")
    # A number between 2^(e-1) and 2^e in bfloat16 has its last place at 2^(e-8).
    squares = sum(
        float((2.0 ** (torch.frexp(t.double()).exponent - 8)).square()[t != 0].sum()) for t in weights.values()
    )
    assert found.rounding == pytest.approx(math.sqrt(squares / 12), rel=1e-4)
    assert (found.before.precision, found.after.precision) == ("bfloat16", "float32")
    count = sum(t.numel() for t in weights.values())
    assert found.norm == pytest.approx(by * math.sqrt(count), rel=0.05)


def test_a_pissa_residual_in_16_bits_is_rounding_too(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", trained=False, **KINDS["pissa"])
    with pytest.raises(RequestError, match=r"has the same weights|where rounding to bfloat16 alone makes"):
        distance(base, adapter, "bfloat16", "bfloat16")


def test_a_gguf_quantised_from_the_same_weights_is_refused_as_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    files = [tmp_path / "whole.gguf", tmp_path / "quantised.gguf"]
    for file in files:
        write_llama(file, quantised=file.stem == "quantised")
    template = tmp_path / "own.jinja"
    template.write_text("{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}")
    models = models_of(*files, chat_template=str(template))
    with pytest.raises(RequestError, match=r"before is float32, after is Q8_0, .* rounding to Q8_0 alone makes 0\.0"):
        measured(preflight(models).models, models, ("walk",))


def test_rows_that_no_token_has_make_no_difference_of_logits(tiny_pair_folder: Path, folder: Path) -> None:
    file = folder / "after" / "model.safetensors"
    tensors = load_file(folder / "before" / "model.safetensors")
    tensors["model.embed_tokens.weight"][295:] += 1
    save_file(tensors, file, {"format": "pt"})
    found = distance(folder / "before", folder / "after")
    assert (found.log_p, [row.layer for row in found.layers if row.difference]) == (0.0, ["model.embed_tokens"])
