from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datablame.config.schema import ModelRef
from datablame.errors import RequestError
from datablame.models.load import load_model, load_tokenizer
from datablame.models.source import Checkpoint, convert

gguf = pytest.importorskip("gguf")
HIDDEN, HEADS, INNER, LAYERS = 64, 4, 96, 2
IDS = torch.tensor([[1, 5, 9, 7]])


def sentencepiece(writer: Any) -> int:
    """Write a tokenizer of bytes and three words; returns how many tokens there are."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁walk", "▁lake", "▁"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(words)


def write_llama(
    file: Path, *, quantised: bool = False, architecture: str = "llama", tokens: Callable[[Any], int] = sentencepiece
) -> None:
    """A tiny model of random weights as llama.cpp's tools write it, in float32 or with Q8_0 matrices."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    rows = tokens(writer)
    writer.add_vocab_size(rows)
    random = torch.Generator().manual_seed(0)

    def add(name: str, *shape: int) -> None:
        values = (0.2 * torch.randn(shape, generator=random) + (len(shape) == 1)).numpy()
        if quantised and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", rows, HIDDEN)
    add("output_norm.weight", HIDDEN)
    add("output.weight", rows, HIDDEN)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", INNER, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, INNER)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("quantised", [False, True])
def test_a_gguf_file_is_the_model_that_transformers_reads_from_it(
    tmp_path: Path, quantised: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    write_llama(tmp_path / "tiny.gguf", quantised=quantised)
    capfd.readouterr()
    model = load_model(ModelRef(path=str(tmp_path / "tiny.gguf")))
    assert capfd.readouterr() == ("", "")
    expected = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="tiny.gguf", dtype="float32")
    assert torch.equal(logits(model), logits(expected.eval()))
    assert model.dtype is torch.float32


def test_a_gguf_file_is_converted_once_whichever_way_it_is_named(tmp_path: Path, cache: Path) -> None:
    write_llama(tmp_path / "tiny.gguf")
    places = [
        Checkpoint(reference, "models.after").located().reference
        for reference in (
            ModelRef(path=str(tmp_path / "tiny.gguf")),
            ModelRef(path=str(tmp_path), gguf_file="tiny.gguf"),
        )
    ]
    assert places[0] == places[1]
    assert [folder.name for folder in cache.iterdir() if folder.is_dir()] == [Path(places[0].path).name]
    assert load_tokenizer(places[0]).convert_tokens_to_ids("▁walk") == 260


def test_an_architecture_that_transformers_does_not_know_is_refused_in_one_line(tmp_path: Path, cache: Path) -> None:
    write_llama(tmp_path / "new.gguf", architecture="from-the-future")
    with pytest.raises(RequestError) as refusal:
        load_model(ModelRef(path=str(tmp_path / "new.gguf")))
    assert str(refusal.value) == (
        f"models.after: {tmp_path}/new.gguf cannot be read as a GGUF model (GGUF model with architecture "
        "from-the-future is not supported yet.); give another file or a hub id"
    )
    assert not [folder for folder in cache.iterdir() if folder.is_dir()]


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(RequestError, match=r"text\.gguf cannot be read as a GGUF model \(.*\); give another file"):
        convert(tmp_path / "text.gguf", tmp_path / "out")
    for reference in (ModelRef(path=str(tmp_path / "no.gguf")), ModelRef(path=str(tmp_path), gguf_file="no.gguf")):
        with pytest.raises(RequestError, match=r"^models\.after = .*no\.gguf is not a file; give a GGUF file"):
            load_model(reference)
