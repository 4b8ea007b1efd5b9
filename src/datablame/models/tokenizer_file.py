"""Tokens are those of the files: a checkpoint's tokenizer.json as it is, whatever class its settings name."""

import unicodedata
from itertools import chain
from pathlib import Path
from typing import Any

PROBES = (
    "Hello, what's 12 + 345?\n\tNaïve café: 東京 <b>x</b>  y",
    "\n\nhello\r\n\r\n  year 2023\n\n2024: 650841823, 1,234.56 and   7\n",
    "I'LL don't WE'RE it's HTMLParser snake_case x2y3 e-mail@x.org\n    if a==b:\n\t\treturn  None",
    "नमस्ते दुनिया ภาษาไทย ١٢٣ Привет, мир! 你好。世界 한국어 😀👍🏽 e\u0301 \u00a0\u200b …—“q”",
)
"""Texts that are cut differently by every pattern in use: digits, line breaks, spaces, cases, scripts, marks."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def as_in_file(file: Path, loaded: Any, source: dict[str, Any]) -> Any:
    """A tokenizer whose ids and texts are those of tokenizer.json, with the special tokens that `loaded` knows.

    transformers builds the class that tokenizer_config or the architecture names, which may bring a pre-tokenizer,
    decoder or special tokens of its own (transformers#45920, #45812). Tokens that tokenizer_config adds stay.

    Raises:
        ValueError: the probes are cut or joined otherwise than by the file itself.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backed = type(loaded) is PreTrainedTokenizerFast
    tokenizer = loaded if backed else PreTrainedTokenizerFast.from_pretrained(**source)
    known, own = tokenizer.get_vocab(), Tokenizer.from_file(str(file))
    for name in SPECIAL:
        token = getattr(loaded, name, None)
        if getattr(tokenizer, name) is None and token in known:
            setattr(tokenizer, name, token)
    own.no_truncation()
    own.no_padding()
    for each in (own, tokenizer.backend_tokenizer):
        if getattr(each.model, "dropout", None):
            # It is for training: every call would cut a text anew.
            each.model.dropout = None
    for text in PROBES:
        ids, expected = ids_of(tokenizer, text), own.encode(text, add_special_tokens=False).ids
        if ids != expected:
            raise ValueError(f"{text!r} is cut into {len(ids)} tokens by it and into {len(expected)} by {file.name}")
    if missing := own.get_vocab().items() - known.items():
        token, index = min(missing, key=lambda item: item[1])
        raise ValueError(f"token id {index} is {token!r} in {file.name} and not in it")
    return tokenizer


def check_text(tokenizer: Any) -> None:
    """Raises ValueError where decoding the probes' tokens gives characters that are not in them, as `Ġ` for a space.

    So it does where no probe has a token that is not the unknown one.

    A normaliser may change case or compose characters, and what a vocabulary does not know may be lost. One that has
    no token for SentencePiece's mark of a space alone spells it in bytes.
    """
    marks = "▁" if tokenizer.convert_tokens_to_ids("▁") in (None, tokenizer.unk_token_id) else ""
    if not set(chain.from_iterable(ids_of(tokenizer, text) for text in PROBES)) - {tokenizer.unk_token_id}:
        raise ValueError("it knows no text")
    for text in PROBES:
        ids = ids_of(tokenizer, text)
        known = [token for token in ids if token != tokenizer.unk_token_id]
        decoded = tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if set(_plain(decoded)) - set(_plain(text + marks)):
            raise ValueError(f"its tokens of {text[:24]!r} are joined to {decoded[:24]!r}")


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text without what a tokenizer would put around it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKD", text).casefold().split()) + " \ufffd"
