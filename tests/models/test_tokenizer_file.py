"""The ids of tokenizer.json, whatever class a folder names; the right ones stand in the case's expected.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers

from datablame.config.schema import ModelRef, Models
from datablame.errors import RequestError
from datablame.models.load import load_tokenizer
from datablame.models.pair import agreed_tokens
from datablame.models.tokenizer_file import PROBES, ids_of

CASE = Path(__file__).parents[1] / "cases" / "olmo2-like-tokenizer"
EXPECTED = json.loads((CASE / "expected.json").read_text())
END = "<|endoftext|>"

Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def as_it_is(file: dict[str, Any], settings: dict[str, Any]) -> None:
    """Nothing changed."""


def folder(path: Path, change: Change = as_it_is, *, kind: str = "olmo2", base: Path | None = None) -> Path:
    """The case's tokenizer, changed, beside the config of a model of that kind, or of an adapter on a base."""
    path.mkdir()
    file, settings = (json.loads((CASE / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    change(file, settings)
    config: dict[str, Any] = {"model_type": kind}
    if base is not None:
        config = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (path / ("config.json" if base is None else "adapter_config.json")).write_text(json.dumps(config))
    for name, values in (("tokenizer.json", file), ("tokenizer_config.json", settings)):
        if values:
            (path / name).write_text(json.dumps(values))
    return path


def load(path: Path) -> Any:
    return load_tokenizer(ModelRef(path=str(path)))


def assert_as_in_file(tokenizer: Any) -> None:
    assert [ids_of(tokenizer, each["text"]) for each in EXPECTED] == [
        each["ids_of_tokenizer_json"] for each in EXPECTED
    ]
    own = Tokenizer.from_file(str(CASE / "tokenizer.json"))
    for text in PROBES:
        assert ids_of(tokenizer, text) == own.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast", "NoSuchTokenizer", None])
@pytest.mark.parametrize("kind", ["olmo2", "llama", "qwen2", "gpt2", "mistral"])
def test_ids_are_those_of_the_file_whatever_class_is_named(tmp_path: Path, kind: str, named: str | None) -> None:
    def name(_: dict[str, Any], settings: dict[str, Any]) -> None:
        settings["tokenizer_class"] = named

    assert_as_in_file(load(folder(tmp_path / "model", name if named else as_it_is, kind=kind)))


def test_an_adapter_has_the_ids_of_its_base(tmp_path: Path) -> None:
    base = folder(tmp_path / "base")
    adapter = folder(tmp_path / "adapter", base=base)
    for pair in ((base, adapter), (adapter, base)):
        before, after = (ModelRef(path=str(path)) for path in pair)
        assert_as_in_file(agreed_tokens(Models(before=before, after=after)).tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_special_tokens_that_only_the_class_knows_are_kept(tmp_path: Path, kind: str) -> None:
    def forget(_: dict[str, Any], settings: dict[str, Any]) -> None:
        for name in ("eos_token", "bos_token", "pad_token"):
            del settings[name]

    tokenizer = load(folder(tmp_path / "model", forget, kind=kind))
    assert (tokenizer.eos_token, tokenizer.eos_token_id, len(tokenizer)) == (END, 0, 307)
    assert_as_in_file(tokenizer)


def test_tokens_that_the_settings_add_stay(tmp_path: Path) -> None:
    flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}

    def add(_: dict[str, Any], settings: dict[str, Any]) -> None:
        settings["added_tokens_decoder"] = {"307": {"content": "<|im_end|>", **flags}}

    tokenizer = load(folder(tmp_path / "model", add, kind="llama"))
    assert tokenizer("<|im_end|>")["input_ids"] == [307]
    assert_as_in_file(tokenizer)


def test_what_training_left_in_the_file_changes_no_ids(tmp_path: Path) -> None:
    def cut_and_drop(file: dict[str, Any], settings: dict[str, Any]) -> None:
        file["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        file["padding"] = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_id": 0, "pad_type_id": 0}
        file["padding"] |= {"pad_token": END, "pad_to_multiple_of": None}
        file["model"]["dropout"] = 0.5
        settings["split_special_tokens"] = True

    for kind in ("olmo2", "llama"):
        tokenizer = load(folder(tmp_path / kind, cut_and_drop, kind=kind))
        assert_as_in_file(tokenizer)
        assert ids_of(tokenizer, END) == [0]


def test_a_folder_without_a_tokenizer_is_refused_and_not_given_an_empty_one(tmp_path: Path) -> None:
    for name, change in (
        ("nothing", lambda file, settings: (file.clear(), settings.clear())),
        ("settings", lambda file, settings: file.clear()),
    ):
        with pytest.raises(RequestError, match=r"has no tokenizer; save that of the checkpoint"):
            load(folder(tmp_path / name, change, kind="qwen2"))
        adapter = folder(tmp_path / f"{name} of an adapter", change, base=folder(tmp_path / f"base of {name}"))
        assert_as_in_file(load(adapter))


def test_a_torn_file_of_an_adapter_is_refused_and_not_replaced(tmp_path: Path) -> None:
    adapter = folder(tmp_path / "adapter", base=folder(tmp_path / "base"))
    (adapter / "tokenizer.json").write_text((CASE / "tokenizer.json").read_text()[:300])
    with pytest.raises(RequestError, match=r"^models\.after = .*adapter cannot be loaded as a tokenizer \("):
        load(adapter)


def test_a_file_that_cannot_join_its_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refusal:
        load(folder(tmp_path / "model", lambda file, _: file.update(decoder=None)))
    assert 'its tokens of "Hello, what\'s 12 + 345?\\n" are joined to "H e ll o' in str(refusal.value)
    assert str(refusal.value).endswith("or correct tokenizer_config.json")


def test_a_tekken_file_alone_is_refused(tmp_path: Path) -> None:
    """What transformers makes of one may leave out its special tokens, so that every id is another."""
    path = folder(tmp_path / "model", lambda file, settings: file.clear(), kind="mistral")
    (path / "tekken.json").write_text("{}")
    with pytest.raises(RequestError, match=r"^models\.after = .* has its tokenizer in tekken\.json alone"):
        load(path)


def test_a_file_that_knows_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"do what its files say \(it knows no text"):
        load(folder(tmp_path / "model", lambda file, _: file["model"].update(vocab={"zzzz": 0, "qqqq": 1}, merges=[])))


def test_a_tokenizer_without_tokenizer_json_is_the_class_that_it_names(tmp_path: Path) -> None:
    model = json.loads((CASE / "tokenizer.json").read_text())["model"]
    path = folder(tmp_path / "model", lambda file, settings: file.clear(), kind="gpt2")
    (path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
    tokenizer = load(path)
    assert [ids_of(tokenizer, each["text"]) for each in EXPECTED] == [
        each["ids_if_rebuilt_with_plain_ByteLevel"] for each in EXPECTED
    ]


def test_a_lossy_tokenizer_is_no_broken_one(tmp_path: Path) -> None:
    """SentencePiece's small vocabularies know few words, and normalisers change case: both are the file's own."""
    from tokenizers import models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "▁hello": 2, "▁y": 3}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert ids_of(load(tmp_path), "Hello Y") == [2, 3]


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    again = load(tmp_path)
    assert [ids_of(again, text) for text in PROBES] == [ids_of(tokenizer, text) for text in PROBES]
    assert again.special_tokens_map == tokenizer.special_tokens_map
