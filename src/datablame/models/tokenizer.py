"""One tokenizer for two checkpoints: compared, refused with the first difference, its chat template chosen."""

from pathlib import Path
from typing import Any

from datablame.engine.run_folder import digest
from datablame.errors import RequestError
from datablame.models.chat import render_prompt
from datablame.models.load import load_tokenizer
from datablame.study.schema import ModelRef

PROBE = "Hello, what's 12 + 345?\n\tNaïve café: 東京 <b>x</b>  y"


def check_pair(before: ModelRef, after: ModelRef, chat_template: str | None = None) -> None:
    """Raises RequestError with the first difference between the checkpoints' tokenizers.

    Compared are the map from tokens to ids, the special tokens (not the padding token, which is always masked), the
    ids of a probe, and the chat templates, unless `chat_template` names one; a `before` without a template is not held
    against it.
    """
    agreed_tokenizer(before, after, chat_template)


def agreed_tokenizer(before: ModelRef, after: ModelRef, chat_template: str | None = None) -> Any:
    """The tokenizer of `after` with the chat template that the study names, after the same checks as `check_pair`.

    `chat_template` is `before`, `after`, the path of a file, or None where both checkpoints have the same.
    """
    ours = load_tokenizer(before, field="models.before")
    theirs = load_tokenizer(after, field="models.after")
    difference = _first_difference(ours, theirs)
    if difference:
        raise RequestError(f"models.before and models.after: {difference}; use checkpoints with one tokenizer")
    if chat_template is None:
        _check_templates(ours, theirs)
        return theirs
    theirs.chat_template = _named_template(chat_template, ours, theirs)
    return theirs


def template_hash(tokenizer: Any) -> str | None:
    """The hash of a tokenizer's chat template, None where it has none."""
    return digest(tokenizer.chat_template) if tokenizer.chat_template else None


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _first_difference(ours: Any, theirs: Any) -> str | None:
    mine, other = ({token: text for text, token in tokenizer.get_vocab().items()} for tokenizer in (ours, theirs))
    for token in sorted(mine.keys() | other.keys()):
        if mine.get(token) != other.get(token):
            return f"token id {token} is {_named(mine, token)} in one and {_named(other, token)} in the other"
    for name in ("bos_token", "eos_token"):
        if getattr(ours, name) != getattr(theirs, name):
            return f"{name} is {getattr(ours, name)!r} in one and {getattr(theirs, name)!r} in the other"
    special = (set(ours.all_special_tokens) ^ set(theirs.all_special_tokens)) - {ours.pad_token, theirs.pad_token}
    if special:
        return f"{min(special)!r} is a special token in one and not in the other"
    encoded, expected = (tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (ours, theirs))
    if encoded != expected:
        return f"{PROBE!r} is cut into {len(encoded)} tokens by one and into {len(expected)} by the other"
    return None


def _check_templates(ours: Any, theirs: Any) -> None:
    mine, other = template_hash(ours), template_hash(theirs)
    if mine is None or other is None or mine == other:
        return
    rendered, wanted = render_prompt(ours, PROBE), render_prompt(theirs, PROBE)
    if rendered == wanted:
        where = f"though one user turn is written alike ({mine[:8]} and {other[:8]})"
    else:
        pairs = enumerate(zip(rendered, wanted, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(rendered), len(wanted)))
        shown = (repr(text[place : place + 24]) for text in (rendered, wanted))
        where = f"from character {place} of a user turn on: {' in one and '.join(shown)} in the other"
    raise RequestError(
        f"models.before and models.after: the chat templates differ, {where}; set models.chat_template to before, "
        "after or the path of a template"
    )


def _named_template(chosen: str, ours: Any, theirs: Any) -> Any:
    if chosen in ("before", "after"):
        template = (ours if chosen == "before" else theirs).chat_template
        if not template:
            raise RequestError(f"models.chat_template = {chosen}: that checkpoint has none; name another or a file")
        return template
    try:
        return Path(chosen).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"models.chat_template = {chosen} cannot be read ({error}); give before, after or the path of a template"
        ) from None


def _named(tokens: dict[int, str], token: int) -> str:
    return repr(tokens[token]) if token in tokens else "unused"
