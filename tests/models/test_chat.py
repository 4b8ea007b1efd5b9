import copy
from typing import TYPE_CHECKING, Any

import pytest

from datablame.errors import RequestError
from datablame.models.chat import encode_document, encode_pair, encode_prompt
from datablame.tables import Document, Message

if TYPE_CHECKING:
    from datablame.models.pair import Pair

BOS = EOS = 1
USER, ASSISTANT = 2, 3


@pytest.fixture
def tokenizer(tiny_pair: "Pair") -> Any:
    """One whose template a test may change."""
    return copy.deepcopy(tiny_pair.tokenizer)


def words(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_a_prompt_has_exactly_one_bos_and_ends_where_the_assistant_speaks(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, "pack nuts")
    assert ids == [BOS, USER, *words(tokenizer, "pack nuts"), ASSISTANT]


def test_a_conversation_keeps_its_turns(tokenizer: Any) -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    a, b, c, d = (words(tokenizer, text) for text in "abcd")
    prompt = [BOS, USER, *a, ASSISTANT, *b, EOS, USER, *c, ASSISTANT]
    assert encode_pair(tokenizer, turns, "d") == ([*prompt, *d, EOS], len(prompt))


def test_a_second_bos_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RequestError, match=r"prompt 'x<\|endoftext\|>y' is encoded with 2 beginning-of-sequence"):
        encode_prompt(tokenizer, "x<|endoftext|>y")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(RequestError, match=r"remove '<\|endoftext\|>' from its text or from the chat template"):
        encode_prompt(tokenizer, "hello")


def test_a_tokenizer_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(
        RequestError,
        match=r"has no chat template, or several of which none is the default; set models\.chat_template",
    ):
        encode_prompt(tokenizer, "hello")


def test_the_response_of_a_document_is_in_the_loss_with_its_eos(tokenizer: Any) -> None:
    document = Document("d", "s", (Message("user", "pack nuts"),), "take the train")
    encoded = encode_document(tokenizer, document, max_tokens=99)
    prompt = encode_prompt(tokenizer, "pack nuts")
    assert encoded == ([*prompt, *words(tokenizer, "take the train"), EOS], len(prompt))
    assert encoded == encode_pair(tokenizer, "pack nuts", "take the train")


def test_a_document_whose_response_is_cut_away_is_none(tokenizer: Any) -> None:
    document = Document("d", "s", (Message("user", "pack nuts"),), "take the train")
    whole = encode_document(tokenizer, document, max_tokens=99)
    assert whole is not None
    cut = encode_document(tokenizer, document, max_tokens=whole.prompt_tokens + 1)
    assert cut == (whole.ids[: whole.prompt_tokens + 1], whole.prompt_tokens)
    assert encode_document(tokenizer, document, max_tokens=whole.prompt_tokens) is None


def test_every_token_of_plain_text_is_in_the_loss(tokenizer: Any) -> None:
    encoded = encode_document(tokenizer, Document("d", "s", (), "pack nuts"), max_tokens=99)
    assert encoded == ([BOS, *words(tokenizer, "pack nuts")], 1)


def test_what_a_template_writes_after_the_eos_is_dropped(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "{{ eos_token + '\n' }}")
    assert encode_pair(tokenizer, "hi", "take it").ids[-1] == EOS


def test_a_template_that_opens_every_turn_with_bos_is_taken_as_it_is(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|endoftext|><|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|endoftext|><|assistant|>{% endif %}"
    )
    assert encode_prompt(tokenizer, "nuts") == [BOS, USER, *words(tokenizer, "nuts"), BOS, ASSISTANT]
    with pytest.raises(RequestError, match="is encoded with 3 beginning-of-sequence"):
        encode_prompt(tokenizer, "nuts<|endoftext|>")


def test_a_template_that_refuses_the_order_of_roles_is_named(tokenizer: Any) -> None:
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('system turns are not supported') }}{% endif %}"
    )
    tokenizer.chat_template = refuses + tokenizer.chat_template
    with pytest.raises(RequestError, match=r"refuses a conversation of system, user, assistant \(system turns are not"):
        encode_document(tokenizer, Document("a", "s", (Message("system", "x"), Message("user", "y")), "z"), 99)
