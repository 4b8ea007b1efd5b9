"""A GGUF file's byte-level tokens are cut as llama.cpp cuts them, by the name of the cut in the file."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tests.models.test_gguf import sentencepiece, write_llama
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from datablame.config.schema import ModelRef
from datablame.errors import RequestError
from datablame.models.gguf_tokenizer import correct
from datablame.models.load import load_tokenizer
from datablame.models.tokenizer_file import PROBES, ids_of

CASE = Path(__file__).parents[1] / "cases" / "olmo2-like-tokenizer" / "tokenizer.json"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGITS = "a  1 2023\n\n7 in 1999 and 650841823 cafe\u0301"


def byte_level(writer: Any, cut: str | None, mark: str = "", template: str = "") -> int:
    """Write the case's vocabulary and merges, with a mark of turns; returns how many tokens there are."""
    model = json.loads(CASE.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__) + [mark] * bool(mark)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * 306, *[3] * bool(mark)])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(0)
    if cut is not None:
        writer.add_tokenizer_pre(cut)
    if template:
        writer.add_chat_template(template)
    return len(tokens)


def corrected(folder: Path, cut: str, mark: str = "", template: str = "") -> Any:
    """The tokenizer of a file with that setting, whose weights nobody reads."""
    write_llama(folder / "tiny.gguf", tokens=lambda writer: byte_level(writer, cut, mark, template))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")
    correct(folder / "tiny.gguf", tokenizer)
    return tokenizer


def split(pattern: str) -> Any:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


@pytest.mark.parametrize(
    ("cut", "pre_tokenizer", "whole", "composed"),
    [
        ("gpt-2", BYTES, False, False),
        ("olmo", BYTES, False, False),
        ("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES]), False, False),
        ("llama-bpe", split(LLAMA3), True, False),
        ("dbrx", split(LLAMA3), False, False),
        ("qwen2", split(QWEN2), False, True),
    ],
)
def test_texts_are_cut_as_the_file_says(
    tmp_path: Path, cut: str, pre_tokenizer: Any, whole: bool, composed: bool
) -> None:
    expected = Tokenizer.from_file(str(CASE))
    expected.pre_tokenizer, expected.model.ignore_merges = pre_tokenizer, whole
    expected.normalizer = normalizers.NFC() if composed else normalizers.Sequence([])
    tokenizer = corrected(tmp_path, cut)
    for text in (*PROBES, DIGITS):
        assert ids_of(tokenizer, text) == expected.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (None, "tokenizer.ggml.pre is missing, so its texts would be cut wrongly"),
        ("default", "tokenizer.ggml.pre = 'default' is not known here, so its texts would be cut wrongly"),
        ("deepseek-llm", "tokenizer.ggml.pre = 'deepseek-llm' is not known here"),
    ],
)
def test_a_cut_that_nobody_knows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str | None, reason: str
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    write_llama(tmp_path / "tiny.gguf", tokens=functools.partial(byte_level, cut=cut))
    with pytest.raises(RequestError) as refusal:
        load_tokenizer(ModelRef(path=str(tmp_path / "tiny.gguf")))
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("give another file or a hub id")


def test_a_mark_of_turns_that_is_cut_to_pieces_is_refused(tmp_path: Path) -> None:
    """As DeepSeek's marks, whose bars are no letters of the byte alphabet."""
    with pytest.raises(ValueError, match=r"its token '<｜User｜>', of the id 307, is read as \d+ tokens"):
        corrected(tmp_path, "gpt-2", "<｜User｜>", "{{ '<｜User｜>' }}")
    assert ids_of(corrected(tmp_path, "gpt-2", "<|user|>", "{{ '<|user|>' }}"), "<|user|>") == [307]


@pytest.mark.parametrize("space", [None, True, False])
def test_a_space_is_put_before_a_text_only_where_the_file_says_so(tmp_path: Path, space: bool | None) -> None:
    def tokens(writer: Any) -> int:
        if space is not None:
            writer.add_add_space_prefix(space)
        return sentencepiece(writer)

    write_llama(tmp_path / "tiny.gguf", tokens=tokens)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    correct(tmp_path / "tiny.gguf", tokenizer)
    first = [] if space is False else [262]
    ids = [*first, *(byte + 3 for byte in b"7walk"), 262, *(byte + 3 for byte in b"7")]
    assert ids_of(tokenizer, "7walk 7") == ids
    assert tokenizer.decode(ids) == "7walk 7"
