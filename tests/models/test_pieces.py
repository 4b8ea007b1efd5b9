from pathlib import Path
from typing import Any

import pytest

from datablame.models.pieces import pieces
from datablame.models.tokenizer_file import PROBES, ids_of

CASES = Path(__file__).parents[1] / "cases"


def loaded(name: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(CASES / name))


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", ["olmo2-like-tokenizer", "dummy-space-tokenizer"])
@pytest.mark.parametrize("text", PROBES)
def test_joined_pieces_are_the_text(name: str, text: str) -> None:
    tokenizer = loaded(name)
    ids = ids_of(tokenizer, text)
    made = pieces(tokenizer, ids)
    assert len(made) == len(ids)
    assert "".join(made).removeprefix(" ") == decoded(tokenizer, ids).removeprefix(" ")


def test_a_character_stands_at_the_token_that_completes_it() -> None:
    tokenizer = loaded("olmo2-like-tokenizer")
    ids = ids_of(tokenizer, "a京!")
    assert len(ids) == 5, "a character of three bytes, of which the vocabulary has each"
    assert pieces(tokenizer, ids) == ["a", "", "", "京", "!"]


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    tokenizer = loaded("olmo2-like-tokenizer")
    a, first, second, third, _ = ids_of(tokenizer, "a京!")
    broken = "\ufffd"
    assert pieces(tokenizer, [first, second]) == [broken, broken]
    assert pieces(tokenizer, [first, a, second, a]) == [broken, "a", broken, "a"]
    assert pieces(tokenizer, [third, first, second, third]) == [broken, "", "", "京"]
    assert pieces(tokenizer, [second] * 9) == [broken] * 9
    assert pieces(tokenizer, []) == []
