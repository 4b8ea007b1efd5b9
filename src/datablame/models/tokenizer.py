"""One tokenizer for two checkpoints: compared, refused with the first difference, its chat template chosen."""

from pathlib import Path
from typing import Any

from datablame.config.schema import ModelRef
from datablame.engine.files import digest
from datablame.errors import RequestError
from datablame.models.chat import render_prompt
from datablame.models.load import load_tokenizer

PROBE = "Hello, what's 12 + 345?\n\tNaïve café: 東京 <b>x</b>  y"


def agreed_tokenizer(before: ModelRef, after: ModelRef, chat_template: str | None = None) -> Any:
    """The tokenizer of `after` with the chat template that the study names.

    Compared are the map from tokens to ids, the special tokens (not the padding token, which is always masked), the
    ids of a probe, and the chat templates, unless `chat_template` names one (`before`, `after` or the path of a file);
    a `before` without a template is not held against it.

    Raises:
        RequestError: the first difference between the checkpoints' tokenizers, or a template that is not there.
    """
    first = load_tokenizer(before, field="models.before")
    second = load_tokenizer(after, field="models.after")
    difference = _first_difference(first, second)
    if difference:
        raise RequestError(f"models.before and models.after: {difference}; use checkpoints with one tokenizer")
    if chat_template is None:
        _check_templates(first, second)
    else:
        second.chat_template = _named_template(chat_template, first, second)
    return second


def template_hash(tokenizer: Any) -> str | None:
    """The hash of a tokenizer's chat template, None where it has none."""
    return digest(tokenizer.chat_template) if tokenizer.chat_template else None


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _first_difference(first: Any, second: Any) -> str | None:
    texts, others = ({token: text for text, token in tokenizer.get_vocab().items()} for tokenizer in (first, second))
    for token in sorted(texts.keys() | others.keys()):
        if texts.get(token) != others.get(token):
            return f"token id {token} is {_quoted(texts, token)} in one and {_quoted(others, token)} in the other"
    for name in ("bos_token", "eos_token"):
        if getattr(first, name) != getattr(second, name):
            return f"{name} is {getattr(first, name)!r} in one and {getattr(second, name)!r} in the other"
    special = (set(first.all_special_tokens) ^ set(second.all_special_tokens)) - {first.pad_token, second.pad_token}
    if special:
        return f"{min(special)!r} is a special token in one and not in the other"
    ids, other_ids = (tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (first, second))
    if ids != other_ids:
        return f"{PROBE!r} is cut into {len(ids)} tokens by one and into {len(other_ids)} by the other"
    return None


def _check_templates(first: Any, second: Any) -> None:
    hashes = template_hash(first), template_hash(second)
    if hashes[0] is None or hashes[1] is None or hashes[0] == hashes[1]:
        return
    text, other = render_prompt(first, PROBE), render_prompt(second, PROBE)
    if text == other:
        where = f"though one user turn is written alike ({hashes[0][:8]} and {hashes[1][:8]})"
    else:
        pairs = enumerate(zip(text, other, strict=False))
        index = next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
        pieces = (repr(rendered[index : index + 24]) for rendered in (text, other))
        where = f"from character {index} of a user turn on: {' in one and '.join(pieces)} in the other"
    raise RequestError(
        f"models.before and models.after: the chat templates differ, {where}; set models.chat_template to before, "
        "after or the path of a template"
    )


def _named_template(name: str, first: Any, second: Any) -> Any:
    if name in ("before", "after"):
        template = (first if name == "before" else second).chat_template
        if not template:
            raise RequestError(f"models.chat_template = {name}: that checkpoint has none; name another or a file")
        return template
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"models.chat_template = {name} cannot be read ({error}); give before, after or the path of a template"
        ) from None


def _quoted(texts: dict[int, str], token: int) -> str:
    return repr(texts[token]) if token in texts else "unused"
