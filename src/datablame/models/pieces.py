"""The text of each token of a text, so that the pieces joined are the text."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_CHARACTER_TOKENS = 4
"""No character of UTF-8 has more bytes, and no token less than one."""


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to a text, special tokens as they are written.

    A token that ends inside a character adds nothing, and the one that completes it the whole; where none does, it is
    the replacement character. A tokenizer that puts a space before every word puts one before the first too.
    """
    made = list[str]()
    while len(made) < len(ids):
        rest = tuple(ids[len(made) : len(made) + _CHARACTER_TOKENS])
        sizes = range(1, len(rest) + 1)
        size = next((n for n in sizes if "\ufffd" not in _added(tokenizer, rest[:n])), 1)
        made += [*[""] * (size - 1), _added(tokenizer, rest[:size])]
    return made


@lru_cache(maxsize=1 << 17)
def _added(tokenizer: Any, ids: tuple[int, ...]) -> str:
    """What the tokens add after themselves: alone, some decoders leave out the space before a word."""
    alone, twice = (
        tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for part in (ids, (*ids, *ids))
    )
    return str(twice[len(alone) :])
