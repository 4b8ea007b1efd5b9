"""Conversations as token ids: the chat template as the checkpoint ships it, one BOS, and where the response begins."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jinja2 import TemplateError

from datablame.errors import RequestError
from datablame.tables import Document, Message


class Encoded(NamedTuple):
    """Token ids, of which the first `prompt_tokens` are not in the loss."""

    ids: list[int]
    prompt_tokens: int


class Preference(NamedTuple):
    """Two answers to one prompt, each with the prompt before it."""

    chosen: Encoded
    rejected: Encoded
    reference: float = 0.0
    """How much likelier the model that training starts from finds the chosen answer, as `preference.log_ratios`."""


def answers(example: Encoded | Preference) -> tuple[Encoded, ...]:
    """The one answer of a document, or both of a pair, chosen first."""
    return (example,) if isinstance(example, Encoded) else (example.chosen, example.rejected)


def encode_prompt(tokenizer: Any, messages: Sequence[Message] | str) -> list[int]:
    """The ids of a conversation up to where the assistant speaks; a text stands for one user turn.

    Raises RequestError where the ids begin with more than one BOS, or where a text smuggles in more than the
    template itself writes.
    """
    return _checked(tokenizer, messages, render_prompt(tokenizer, messages))


def encode_document(tokenizer: Any, document: Document, max_tokens: int) -> Encoded | None:
    """The document cut to `max_tokens`, its EOS in the loss; None where nothing of the response is left.

    Plain text (a document without a prompt) is all response, after a BOS where the tokenizer has one. Raises
    RequestError where the chat template refuses the order of roles.
    """
    if not document.prompt:
        text = _tokens(tokenizer, document.response)
        bos = tokenizer.bos_token_id
        ids = text if bos is None or text[:1] == [bos] else [bos, *text]
        encoded = Encoded(ids[:max_tokens], 1)
    else:
        prompt, response = _turns(tokenizer, document.prompt, document.response, eos=True)
        encoded = Encoded((prompt + response)[:max_tokens], len(prompt))
    return encoded if len(encoded.ids) > encoded.prompt_tokens else None


def encode_preference(tokenizer: Any, document: Document, max_tokens: int) -> Preference | None:
    """Both answers of a preference pair as `encode_document` gives them; None where nothing of one of them is left.

    Raises RequestError where the chat template refuses the order of roles.
    """
    chosen, rejected = (
        encode_document(tokenizer, replace(document, response=answer, rejected=""), max_tokens)
        for answer in (document.response, document.rejected)
    )
    return None if chosen is None or rejected is None else Preference(chosen, rejected)


def encode_pair(tokenizer: Any, prompt_text: str, response_text: str, eos: bool = True) -> Encoded:
    """A prompt and an output; `eos` is false for an output that was cut off, which never ended."""
    prompt, response = _turns(tokenizer, prompt_text, response_text, eos=eos)
    return Encoded(prompt + response, len(prompt))


def render_prompt(tokenizer: Any, messages: Sequence[Message] | str) -> str:
    """The chat template's text for the conversation and the beginning of an assistant turn."""
    return _render(tokenizer, _as_messages(messages), generation=True)


def _turns(
    tokenizer: Any, messages: Sequence[Message] | str, response: str, *, eos: bool
) -> tuple[list[int], list[int]]:
    turns = _as_messages(messages)
    opening = _render(tokenizer, turns, generation=True)
    whole = _render(tokenizer, (*turns, Message("assistant", response)), generation=False)
    end = tokenizer.eos_token_id
    # A template may rewrite the response (strip it, drop its reasoning); then the response is taken as it is.
    text = whole[len(opening) :] if whole.startswith(opening) else response
    ids = _tokens(tokenizer, text)
    if end is not None:
        closing = max((index for index, token in enumerate(ids) if token == end), default=len(ids))
        ids = [*ids[:closing], end] if eos else ids[:closing]
    return _checked(tokenizer, messages, opening), ids


def _checked(tokenizer: Any, messages: Sequence[Message] | str, rendered: str) -> list[int]:
    ids = _tokens(tokenizer, rendered)
    bos = tokenizer.bos_token_id
    if bos is not None and bos in ids:
        doubled = ids[:2] == [bos, bos]
        if doubled or (isinstance(messages, str) and ids.count(bos) > _own_bos(tokenizer)):
            shown = messages if isinstance(messages, str) else messages[-1].content
            raise RequestError(
                f"prompt {_short(shown)} is encoded with {ids.count(bos)} beginning-of-sequence tokens, more than the "
                f"template writes; remove {tokenizer.bos_token!r} from its text or from the chat template"
            )
    return ids


def _own_bos(tokenizer: Any) -> int:
    """How often the template itself writes BOS around one user turn: SmolLM2 opens every turn with it."""
    return _tokens(tokenizer, render_prompt(tokenizer, "")).count(tokenizer.bos_token_id)


def _as_messages(messages: Sequence[Message] | str) -> tuple[Message, ...]:
    return (Message("user", messages),) if isinstance(messages, str) else tuple(messages)


def _render(tokenizer: Any, messages: Sequence[Message], *, generation: bool) -> str:
    if not tokenizer.chat_template:
        raise RequestError(
            f"models.after = {tokenizer.name_or_path} has no chat template; use a checkpoint whose tokenizer has one"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise RequestError(f"the chat template refuses a conversation of {roles} ({error}); mend the data") from None
    return rendered


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
