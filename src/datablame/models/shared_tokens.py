"""The tokens that two checkpoints share: equal ids, but for added tokens and the end of text; the rest is masked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datablame.models.source import refusal
from datablame.models.tokenizer_file import PROBES, SPECIAL, ids_of
from datablame.tables import SharedTokens

_SIDES = ("before", "after")


class Agreed(NamedTuple):
    """What cuts texts for both checkpoints, and what they may write."""

    tokenizer: Any
    tokens: SharedTokens


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_alike(tokenizers: Sequence[Any], fields: tuple[str, str] = ("models.before", "models.after")) -> None:
    """Raises RequestError where an ordinary token has two names, or a probe is cut in two ways."""
    both = " and ".join(fields)
    known, differing = _named(tokenizers)
    for index in differing:
        if any(index in names and index not in tokenizer.added_tokens_decoder for names, tokenizer in known):
            one, other = (repr(names[index]) if index in names else "unused" for names, _ in known)
            difference = f"token id {index} is {one} in one and {other} in the other"
            raise refusal("tokenizers", both=both, difference=difference)
    for text in PROBES:
        ids, others = (ids_of(tokenizer, text) for tokenizer in tokenizers)
        if ids != others:
            difference = f"{text!r} is cut into {len(ids)} tokens by one and into {len(others)} by the other"
            raise refusal("tokenizers", both=both, difference=difference)


def share(tokenizers: Sequence[Any], rows: Sequence[int], ends: Sequence[Sequence[int]]) -> Agreed:
    """One tokenizer for before and after, whose embeddings have `rows` and whose settings name `ends` of outputs.

    It is that of after, with its chat template. Where that has tokens that before lacks and nothing needs (padding), it
    is before's with the template and special tokens of after. Drawn are only tokens with one name in both and a row in
    both, and what ends an output or stands in the template.

    Raises:
        RequestError: a token that ends outputs or stands in the template has another id in before, or no row in one of
            the models; an embedding has no rows for ordinary tokens.
    """
    first, second = tokenizers
    known, differing = _named(tokenizers)
    (names, _), (others, _) = known
    for side, n, (own, tokenizer) in zip(_SIDES, rows, known, strict=True):
        if max(own.keys() - tokenizer.added_tokens_decoder.keys(), default=0) >= n:
            raise refusal("few_rows", field=f"models.{side}", rows=n, size=max(own) + 1)
    stops = [{each.eos_token_id, *more} - {None} for each, more in zip(tokenizers, ends, strict=True)]
    needed, ids_before = _needed(second, others, stops[1]), first.get_vocab()
    for index in sorted(needed):
        token = others[index]
        if (elsewhere := ids_before.get(token, index)) != index:
            difference = f"{token!r} is token id {elsewhere} in one and {index} in the other"
            raise refusal("tokenizers", both="models.before and models.after", difference=difference)
        for side, n in zip(_SIDES, rows, strict=True):
            if index >= n:
                raise refusal("no_row", token=token, id=index, side=side, rows=n, size=index + 1)
    only = [tuple(own[index] for index in differing if index in own) for own in (names, others)]
    keep = not only[1] or not needed.isdisjoint(differing)
    shared = (names.keys() & others.keys()) - set(differing)
    drawn = {index for index in shared | needed | stops[0] | stops[1] if index < min(rows)}
    size = max(drawn) + 1
    tokens = SharedTokens(
        tokenizer="after" if keep else "before",
        vocabulary_size=size,
        masked_ids=tuple(sorted(set(range(size)) - drawn)),
        stop_ids=tuple(sorted(drawn & (stops[0] | stops[1]))),
        eos=(first.eos_token, second.eos_token),
        rows=(rows[0], rows[1]),
        only_before=only[0],
        only_after=only[1],
    )
    return Agreed(second if keep else _dressed(first, second), tokens)


def check_rows(agreed: Agreed, prompts: Mapping[str, Sequence[int]]) -> None:
    """Raises RequestError for a prompt, by its id, that holds a token without a row in one of the models."""
    rows = min(agreed.tokens.rows)
    for name, ids in prompts.items():
        if (index := max(ids)) >= rows:
            token = agreed.tokenizer.convert_ids_to_tokens(index)
            raise refusal("prompt_row", prompt=name, token=token, id=index, rows=rows)


def _named(tokenizers: Sequence[Any]) -> tuple[list[tuple[dict[int, str], Any]], list[int]]:
    """Each tokenizer with its tokens by id, and the ids that have no name, or another one, in one of the two."""
    known = [({index: text for text, index in each.get_vocab().items()}, each) for each in tokenizers]
    (names, _), (others, _) = known
    return known, sorted(index for index in names.keys() | others.keys() if names.get(index) != others.get(index))


def _needed(tokenizer: Any, names: Mapping[int, str], stops: set[int]) -> set[int]:
    """The ids of added tokens that end outputs, begin texts, or stand in the chat template."""
    template, marks = str(tokenizer.chat_template), (tokenizer.bos_token_id, tokenizer.eos_token_id)
    added = tokenizer.added_tokens_decoder.keys()
    return {index for index in added if index in stops or index in marks or names[index] in template}


def _dressed(tokenizer: Any, other: Any) -> Any:
    """The tokenizer with the chat template of the other, and those of its special tokens that it has too."""
    tokenizer.chat_template, known = other.chat_template, tokenizer.get_vocab()
    for name in SPECIAL:
        if (token := getattr(other, name)) in known:
            setattr(tokenizer, name, token)
    return tokenizer
