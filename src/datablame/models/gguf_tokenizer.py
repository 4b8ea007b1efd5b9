"""A GGUF file's tokenizer as the file describes it, where transformers builds another one."""

from pathlib import Path
from typing import Any

from datablame.engine.files import packaged_yaml
from datablame.models.tokenizer_file import check_text, ids_of

_WHOLE = (3, 4)
"""Types of tokens that no text is cut through: control, user-defined."""


def correct(file: Path, tokenizer: Any) -> None:
    """Give the tokenizer that transformers made the cut, the merging and the spaces that the file says.

    Raises ValueError where the file names a cut that neither transformers nor `gguf_cuts.yaml` has, and where a mark of
    turns is no single token.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    settings = {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.ggml.")}
    backend = tokenizer.backend_tokenizer
    if settings.get("tokenizer.ggml.model") == "gpt2":
        _cut(backend, settings.get("tokenizer.ggml.pre"))
    elif settings.get("tokenizer.ggml.add_space_prefix") is False:
        _without_first_space(backend)
    kinds, template = settings.get("tokenizer.ggml.token_type", ()), tokenizer.chat_template or ""
    for index, (token, kind) in enumerate(zip(settings["tokenizer.ggml.tokens"], kinds, strict=False)):
        if kind in _WHOLE and token in template and (ids := ids_of(tokenizer, token)) != [index]:
            raise ValueError(f"its token {token!r}, of the id {index}, is read as {len(ids)} tokens")
    check_text(tokenizer)


def _cut(backend: Any, name: str | None) -> None:
    from tokenizers import normalizers, pre_tokenizers

    cuts = packaged_yaml("datablame.models", "gguf_cuts.yaml")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in cuts["digit by digit"]:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    # What transformers falls back to for a name that it does not know.
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) and name not in cuts["as gpt-2"]:
        shown = "tokenizer.ggml.pre is missing" if name is None else f"tokenizer.ggml.pre = {name!r} is not known here"
        raise ValueError(f"{shown}, so its texts would be cut wrongly")
    if name in cuts["without merges"]:
        backend.model.ignore_merges = True
    if name in cuts["composed"]:
        backend.normalizer = normalizers.NFC()


def _without_first_space(backend: Any) -> None:
    """Let a text that begins without a space begin with the token of a word inside a text."""
    from tokenizers import decoders, pre_tokenizers

    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer.prepend_scheme = "never"
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
