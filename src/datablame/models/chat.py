"""Conversations as token ids: the chat template as the checkpoint ships it, one BOS, and where the response begins."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jinja2 import TemplateError

from datablame.models.source import refusal
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


def encode_prompt(tokenizer: Any, messages: Sequence[Message] | str, rendered: str | None = None) -> list[int]:
    """The ids of a conversation up to where the assistant speaks, as `render_prompt` gives it; a text is one user turn.

    Raises RequestError where they begin with more than one BOS, or a text smuggles in more than the template writes.
    """
    ids = _tokens(tokenizer, render_prompt(tokenizer, messages) if rendered is None else rendered)
    bos = tokenizer.bos_token_id
    if bos is not None and bos in ids:
        # SmolLM2's template opens every turn with BOS.
        most = _tokens(tokenizer, render_prompt(tokenizer, "")).count(bos) if isinstance(messages, str) else len(ids)
        if ids[:2] == [bos, bos] or ids.count(bos) > most:
            text = _as_messages(messages)[-1].content
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise refusal("many_bos", shown=shown, n=ids.count(bos), bos=tokenizer.bos_token)
    return ids


def encode_document(tokenizer: Any, document: Document, max_tokens: int) -> Encoded | None:
    """The document cut to `max_tokens`, its EOS in the loss; None where nothing of the response is left.

    Plain text is all response, after the BOS. RequestError where the chat template refuses the order of roles.
    """
    if document.prompt:
        ids, prompt_tokens = encode_pair(tokenizer, document.prompt, document.response)
    else:
        ids, prompt_tokens = _tokens(tokenizer, document.response), 1
        if tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
            ids = [tokenizer.bos_token_id, *ids]
    return Encoded(ids[:max_tokens], prompt_tokens) if min(len(ids), max_tokens) > prompt_tokens else None


def encode_preference(tokenizer: Any, document: Document, max_tokens: int) -> Preference | None:
    """Both answers of a preference pair as `encode_document` gives them; None where nothing of one of them is left."""
    chosen, rejected = (
        encode_document(tokenizer, replace(document, response=answer, rejected=""), max_tokens)
        for answer in (document.response, document.rejected)
    )
    return None if chosen is None or rejected is None else Preference(chosen, rejected)


def encode_pair(tokenizer: Any, prompt: Sequence[Message] | str, response: str, eos: bool = True) -> Encoded:
    """A prompt and an output; `eos` is false for an output that was cut off, which never ended."""
    turns = _as_messages(prompt)
    opening = render_prompt(tokenizer, turns)
    whole = render_prompt(tokenizer, (*turns, Message("assistant", response)), generation=False)
    # A template may rewrite the response (strip it, drop its reasoning); then the response is taken as it is.
    ids = _tokens(tokenizer, whole[len(opening) :] if whole.startswith(opening) else response)
    if (end := tokenizer.eos_token_id) is not None:
        closing = max((index for index, token in enumerate(ids) if token == end), default=len(ids))
        ids = [*ids[:closing], end] if eos else ids[:closing]
    prompt_ids = encode_prompt(tokenizer, prompt, opening)
    return Encoded(prompt_ids + ids, len(prompt_ids))


def render_prompt(tokenizer: Any, messages: Sequence[Message] | str, *, generation: bool = True) -> str:
    """The chat template's text for the conversation and, unless `generation` is off, the start of an assistant turn."""
    if not tokenizer.chat_template:
        raise refusal("no_chat_template", name=tokenizer.name_or_path)
    turns = [{"role": message.role, "content": message.content} for message in _as_messages(messages)]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))
    except TemplateError as error:
        raise refusal("roles", roles=", ".join(turn["role"] for turn in turns), error=error) from None


def _as_messages(messages: Sequence[Message] | str) -> tuple[Message, ...]:
    return (Message("user", messages),) if isinstance(messages, str) else tuple(messages)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
