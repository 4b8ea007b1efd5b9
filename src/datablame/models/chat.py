"""Conversations as token ids: rendered and tokenised once and whole, as the checkpoint's chat template has them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from datablame.models.source import refusal
from datablame.models.template import (
    Unrendered,
    answer_start,
    cut,
    least_start,
    rendered,
    turn_of,
    unwritten,
)
from datablame.models.tokenizer_file import ids_of
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


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """The ids of a user's turn and the start of the assistant's.

    Raises RequestError where they begin with more than one BOS, the text smuggles in more than the template writes, or
    the template leaves the turn out.
    """
    asked, turn, bos = (Message("user", prompt),), turn_of(tokenizer), tokenizer.bos_token_id
    text = rendered(tokenizer, asked, generation=True) + turn.header
    ids = [*turn.bos, *ids_of(tokenizer, text)]
    shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
    if (role := unwritten(text, asked)) is not None:
        raise refusal("lost_prompt", shown=shown, role=role)
    # SmolLM2's template opens every turn with BOS.
    if bos is not None and (ids[:2] == [bos, bos] or ids.count(bos) > turn.n_bos):
        raise refusal("many_bos", shown=shown, n=ids.count(bos), bos=tokenizer.bos_token)
    return ids


def encode_document(tokenizer: Any, document: Document, max_tokens: int) -> Encoded | None:
    """The document cut to `max_tokens`, the end of its turn in the loss; None where nothing of the response is left.

    Plain text is all response, after the BOS. RequestError where the chat template does not write it all.
    """
    if document.prompt:
        ids, prompt_tokens = encode_pair(tokenizer, document.prompt, document.response)
    else:
        ids, prompt_tokens = ids_of(tokenizer, document.response), 1
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


def encode_pair(tokenizer: Any, prompt: Sequence[Message] | str, response: str) -> Encoded:
    """A prompt and its answer as one text, of which the loss has the answer and what ends it.

    What the template writes before the answer, be it an empty thought, belongs to the prompt; what it writes after the
    end of the turn is left out. Raises Unrendered where it leaves out a turn or a part of the answer.
    """
    turns = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    turn = turn_of(tokenizer)
    text = rendered(tokenizer, (*turns, Message("assistant", response)), generation=False)
    start = answer_start(text.removesuffix(turn.closing), response)
    if response[:1].isspace():
        start = max(start, least_start(tokenizer, turns, text))
    if (role := unwritten(text[:start], turns)) is not None:
        raise Unrendered(f"the chat template does not write a turn of the role {role}")
    ids, border = cut(tokenizer, text, start)
    ids = ids[: len(ids) - turn.after_end]
    if turn.end is None and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return Encoded([*turn.bos, *ids], len(turn.bos) + border)
