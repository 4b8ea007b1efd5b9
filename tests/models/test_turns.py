"""Where an answer begins and ends: each template of tests/cases, its tokens counted by the tokenizers library alone."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import TEXTS
from tokenizers import Tokenizer

from datablame.config.schema import Models
from datablame.errors import RequestError
from datablame.models.chat import Encoded, encode_document, encode_pair, encode_prompt
from datablame.models.pair import stop_tokens
from datablame.models.template import Unrendered, chat_format, framed, rendered, turn_of
from datablame.tables import Document, Message

CASES = Path(__file__).parents[1] / "cases"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|end|>", "<s>", "</s>"]
QWEN3 = """{%- for m in messages %}
    {%- if m.role == 'assistant' and '</think>' in m.content %}
        {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}{%- set thought = '' %}{%- set said = m.content %}{%- endif %}
    {%- if m.role == 'assistant' and loop.last %}
        {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {{- said.lstrip('\\n') + '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
"""How Qwen3's template treats thoughts: an empty one before a last answer, none before earlier ones."""
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}{{ '[INST]' }}"
    "{% if loop.revindex <= 2 and system %}{{ system + '\\n\\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""The system's text stands before the last question, not first."""


def bpe(special: list[str] = SPECIAL) -> Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: dict[str, Any] = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    bare.train_from_iterator(["a\n\n b"] * 20 + list(TEXTS), trainers.BpeTrainer(vocab_size=320, **settings))
    return bare


@pytest.fixture(scope="module")
def bare() -> Tokenizer:
    return bpe()


def chat(bare: Tokenizer, template: str, **tokens: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokens = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | tokens
    made = PreTrainedTokenizerFast(tokenizer_object=bare, **tokens)
    made.chat_template = template
    return made


def case(name: str) -> str:
    return (CASES / "templates" / f"{name}.jinja").read_text()


def ids(bare: Tokenizer, *pieces: str) -> list[int]:
    return [token for piece in pieces for token in bare.encode(piece, add_special_tokens=False).ids]


OPENING = "<|im_start|>user\npack nuts<|im_end|>\n<|im_start|>assistant\n"
THREE = "<|user|>\npack nuts\n<|assistant|>\n"
ENDS = "<|user|>\npack nuts<|end|>\n<|assistant|>\n"
TODAY = "<|im_start|>system\nToday: 03 Feb 2025<|im_end|>\n"
ALWAYS = case("chatml").replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}\n")


@pytest.mark.parametrize(
    ("template", "asked", "before", "end"),
    [
        pytest.param(case("chatml"), OPENING, OPENING, "<|im_end|>", id="chatml"),
        pytest.param(case("empty-think-block"), OPENING, OPENING + "<think>\n\n</think>\n\n", "<|im_end|>", id="empty"),
        pytest.param(case("generation-prompt-ignored"), OPENING, OPENING, "<|im_end|>", id="ignored"),
        pytest.param(case("generation-prompt-opens-think"), OPENING + "<think>\n", OPENING, "<|im_end|>", id="opens"),
        pytest.param(case("three-roles-no-bos"), THREE, THREE, "</s>", id="no-bos"),
        pytest.param(case("todays-date"), TODAY + OPENING, TODAY + OPENING, "<|im_end|>", id="date"),
        pytest.param(case("turn-end-then-eos"), ENDS, ENDS, "<|end|>", id="end-then-eos"),
        pytest.param(ALWAYS, OPENING, OPENING, "<|im_end|>", id="always"),
        pytest.param(QWEN3, OPENING, OPENING + "<think>\n\n</think>\n\n", "<|im_end|>", id="qwen3"),
    ],
)
def test_what_stands_before_an_answer_is_the_prompt_and_the_turns_end_is_the_last_token(
    bare: Tokenizer, template: str, asked: str, before: str, end: str
) -> None:
    eos = "</s>" if end in ("</s>", "<|end|>") else "<|endoftext|>"
    tokenizer = chat(bare, framed(template, {}, date(2025, 2, 3)), eos_token=eos)
    assert encode_prompt(tokenizer, "pack nuts") == ids(bare, asked)
    whole = bare.encode(f"{before}take the train{end}", add_special_tokens=False)
    prompt_tokens = sum(stop <= len(before) for _, stop in whole.offsets)
    assert encode_pair(tokenizer, "pack nuts", "take the train") == Encoded(whole.ids, prompt_tokens)
    assert turn_of(tokenizer).end == bare.token_to_id(end)


def test_a_cut_document_has_no_end_in_its_loss(bare: Tokenizer) -> None:
    document = Document("d", "s", (Message("user", "pack nuts"),), "take the train")
    tokenizer = chat(bare, case("chatml"))
    whole = encode_document(tokenizer, document, 99)
    assert whole is not None
    assert encode_document(tokenizer, document, len(whole.ids) - 1) == (whole.ids[:-1], whole.prompt_tokens)


def test_the_first_token_of_an_answer_is_the_one_in_its_place() -> None:
    from transformers import AutoTokenizer

    folder = CASES / "dummy-space-tokenizer"
    expected = json.loads((folder / "expected.json").read_text())["whole_text"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole, prompt_tokens = encode_pair(tokenizer, "hi there", "Hello there")
    assert tokenizer.convert_ids_to_tokens(whole) == expected[:-1]  # What follows the end of the turn is left out.
    assert tokenizer.convert_ids_to_tokens(whole[prompt_tokens:]) == ["Hello", "▁there", "</s>"]
    assert tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, "hi there")) == expected[:8]


def test_a_token_across_the_border_is_in_the_loss(bare: Tokenizer) -> None:
    # "\n" of the header and "\n" of the answer are one token, which no prompt has.
    tokenizer = chat(bare, case("chatml"))
    whole, prompt_tokens = encode_pair(tokenizer, "pack nuts", "\n take")
    assert whole == ids(bare, OPENING + "\n take<|im_end|>")
    assert bare.decode(whole[prompt_tokens : prompt_tokens + 1]) == "\n\n"
    assert whole[:prompt_tokens] == ids(bare, OPENING)[:prompt_tokens]


@pytest.mark.parametrize("answer", ["end", "im_end", "pack nuts", "assistant", "  take  \n", "a\n\n b"])
def test_an_answer_is_found_at_its_own_place_whatever_it_says(bare: Tokenizer, answer: str) -> None:
    whole, prompt_tokens = encode_pair(chat(bare, case("chatml")), "pack nuts", answer)
    assert whole == ids(bare, f"{OPENING}{answer}<|im_end|>")
    assert bare.decode(whole[prompt_tokens:-1], skip_special_tokens=False).strip() == answer.strip()


def test_a_template_that_trims_or_spaces_a_thought_has_its_answer_found(bare: Tokenizer) -> None:
    written = OPENING + "<think>\nwalk or train\n</think>\n\ntake<|im_end|>"
    tokenizer = chat(bare, QWEN3)
    whole, prompt_tokens = encode_pair(tokenizer, "pack nuts", "<think>walk or train</think>take")
    assert (whole, prompt_tokens) == (ids(bare, written), len(ids(bare, OPENING)))
    trims = chat(bare, case("chatml").replace("m['content']", "m['content'] | trim"))
    assert encode_pair(trims, " pack nuts\n", " take ") == encode_pair(chat(bare, case("chatml")), "pack nuts", "take")


def test_white_space_that_a_template_strips_from_an_answer_leaves_its_own_in_the_prompt(bare: Tokenizer) -> None:
    opened = OPENING + "<think>\n\n</think>\n\n"
    assert encode_pair(chat(bare, QWEN3), "pack nuts", "\n\ntake") == encode_pair(
        chat(bare, QWEN3), "pack nuts", "take"
    )
    assert encode_pair(chat(bare, QWEN3), "pack nuts", "\n take") == (
        ids(bare, f"{opened} take<|im_end|>"),
        len(ids(bare, opened)),
    )
    trims = chat(bare, case("chatml").replace("m['content']", "m['content'] | trim"))
    for answer in ("\ntake", "\n \ntake\n", "\n"):
        assert encode_pair(trims, "pack nuts", answer) == encode_pair(trims, "pack nuts", answer.strip())


def test_spaces_that_open_an_answer_are_in_the_loss_though_offsets_are_trimmed() -> None:
    from tokenizers import processors

    trims = bpe()
    trims.post_processor = processors.ByteLevel(trim_offsets=True)
    for answer in ("   take", " take", "  "):
        whole, prompt_tokens = encode_pair(chat(trims, case("chatml")), "pack nuts", answer)
        assert trims.decode(whole[prompt_tokens:], skip_special_tokens=False) == f"{answer}<|im_end|>"


def test_a_mark_that_takes_in_the_space_after_it_is_no_part_of_an_answer() -> None:
    from tokenizers import AddedToken

    takes = bpe()
    takes.add_special_tokens([AddedToken("<|im_start|>", rstrip=True), AddedToken("<|end|>", rstrip=True)])
    tokenizer = chat(takes, "{% for m in messages %}<|im_start|>{{ m['content'] }}<|end|>{% endfor %}<|im_start|>")
    expected = ids(takes, "<|im_start|>nuts<|end|><|im_start|>take<|end|>")
    border = len(ids(takes, "<|im_start|>nuts<|end|><|im_start|>"))
    for answer in ("take", " take", "\n\ntake"):
        assert encode_pair(tokenizer, "nuts", answer) == (expected, border)


def test_a_space_before_every_answer_belongs_to_its_first_word(bare: Tokenizer) -> None:
    tokenizer = chat(bare, LLAMA2, bos_token="<s>", eos_token="</s>")
    assert encode_prompt(tokenizer, "pack nuts") == ids(bare, "<s>[INST] pack nuts [/INST]")
    whole, prompt_tokens = encode_pair(tokenizer, "pack nuts", "take the train")
    assert whole == ids(bare, "<s>[INST] pack nuts [/INST] take the train </s>")
    assert bare.decode(whole[prompt_tokens:]) == " take the train "


def test_a_tokenizers_bos_is_put_once_before_what_the_template_writes(bare: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    adds = bpe()
    adds.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", adds.token_to_id("<s>"))])
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    expected = adds.encode(f"{THREE}take</s>").ids
    for template in (case("three-roles-no-bos"), "{{ bos_token }}" + case("three-roles-no-bos")):
        tokenizer = chat(adds, template, **named)
        assert encode_prompt(tokenizer, "pack nuts") == adds.encode(THREE).ids
        assert encode_pair(tokenizer, "pack nuts", "take") == (expected, len(adds.encode(THREE).ids))
    # One that adds none is left without.
    assert encode_prompt(chat(bare, case("three-roles-no-bos"), **named), "pack nuts") == ids(bare, THREE)


@pytest.mark.parametrize(
    ("template", "tokens", "message"),
    [
        (
            case("chatml").replace("'<|im_start|>assistant\\n'", "'<|im_start|>model\\n'"),
            SPECIAL,
            r"opens an answer with '<\|im_end\|>\\n<\|im_start\|>model\\n' in a prompt and with "
            r"'<\|im_end\|>\\n<\|im_start\|>assistant\\n' in a conversation",
        ),
        (case("chatml"), SPECIAL[:1], r"answer with '<\|im_end\|>\\n', which the tokenizer cuts into \d+ tokens"),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", SPECIAL, "the assistant says"),
        ("{% for m in messages if m['role'] != 'user' %}{{ m['content'] }}{% endfor %}", SPECIAL, "what the user says"),
        ("{% for m in messages %}{{ m['content'] + m['name'] + 1 }}{% endfor %}", SPECIAL, "a conversation of user"),
    ],
    ids=["another header", "no token", "no answer", "no question", "broken"],
)  # fmt: skip
def test_a_template_that_cannot_be_followed_is_refused(template: str, tokens: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        encode_prompt(chat(bpe(tokens), template), "pack nuts")


def test_a_template_without_an_end_has_eos_after_its_answers(bare: Tokenizer) -> None:
    tokenizer = chat(bare, "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}")
    assert encode_prompt(tokenizer, "pack nuts") == ids(bare, "user: pack nuts\nassistant:")
    whole, prompt_tokens = encode_pair(tokenizer, "pack nuts", "take")
    assert whole == ids(bare, "user: pack nuts\nassistant: take\n<|endoftext|>")
    assert bare.decode(whole[prompt_tokens:], skip_special_tokens=False).strip() == "take\n<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        (
            "{% for m in messages %}<|im_start|>{{ m['content'] }}"
            "{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|im_end|><|im_start|>{% endif %}",
            "<|im_end|>",
        ),
        ("{% for m in messages %}<|im_start|>{{ m['role'] + m['content'] }}{% endfor %}", "<|im_start|>"),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}", None),
    ],
    ids=["between turns", "next turn", "none"],
)
def test_where_a_last_answer_has_no_end_generation_stops_before_the_next_turn(
    bare: Tokenizer, template: str, stop: str | None
) -> None:
    tokenizer = chat(bare, template)
    turn, stops = turn_of(tokenizer), [] if stop is None else ids(bare, stop)
    assert (turn.end, turn.stop) == (None, stops[0] if stops else None)
    assert encode_pair(tokenizer, "pack nuts", "take").ids[-1] == tokenizer.eos_token_id
    assert list(stop_tokens(tokenizer, None)) == [0, *stops]


def test_thinking_is_turned_off_where_the_study_says_so(bare: Tokenizer) -> None:
    written = "{before: a, after: b, chat_template_kwargs: {enable_thinking: false}}"
    off = chat(bare, framed(QWEN3, Models.model_validate(yaml.safe_load(written)).chat_template_kwargs, None))
    assert encode_prompt(off, "pack nuts") == ids(bare, OPENING + "<think>\n\n</think>\n\n")
    for value in ('a "quoted" 😀 \\ text\n', 3, 2.5, True, ""):
        template = framed("{{ shown is string }}|{{ shown }}", {"shown": value}, None)
        shown = chat(bare, template).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        assert shown == f"{isinstance(value, str)}|{value}"
    with pytest.raises(RequestError, match=r"chat_template_kwargs\.enable_thinkin stands nowhere in the chat template"):
        framed(QWEN3, {"enable_thinkin": False}, None)


@pytest.mark.parametrize(
    ("opens", "settings", "unprompted"),
    [
        ("", {}, "<think>\n\n</think>\n\n"),
        ("<think>\\n", {}, "\n</think>\n\n"),
        ("", {"enable_thinking": False}, ""),
    ],
)
def test_what_only_documents_have_before_their_answers_is_told(
    bare: Tokenizer, opens: str, settings: dict[str, Any], unprompted: str
) -> None:
    template = QWEN3.replace("{{- '<|im_start|>assistant\\n' }}", f"{{{{- '<|im_start|>assistant\\n{opens}' }}}}")
    assert chat_format(chat(bare, framed(template, settings, None)), None).unprompted == unprompted


def test_a_day_is_told_as_the_template_asks_for_it(bare: Tokenizer) -> None:
    template = (
        "\n  {% if strftime_now is defined %}{% set day = strftime_now('%d %B %Y') %}{% endif %}"
        "{% macro head() %}{{ strftime_now('%Y-%m-%d, %A %-d %b %y %j') }}{% endmacro %}"
        "{{ day + '|' }}{% for m in messages %}{{ head() }}{% endfor %}"
    )
    tokenizer = chat(bare, framed(template, {}, date(2024, 7, 6)))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert text == "\n06 July 2024|2024-07-06, Saturday 6 Jul 24 188"
    assert framed(QWEN3, {}, date(2024, 7, 6)) == QWEN3


def test_every_turn_has_a_place_of_its_own_in_what_is_written(bare: Tokenizer) -> None:
    tokenizer = chat(bare, case("three-roles-no-bos"), eos_token="</s>")
    kept: dict[str, int | str] = {}
    for line in (CASES / "roles.jsonl").read_text().splitlines():
        row = json.loads(line)
        *prompt, last = [Message(turn["role"], turn["content"] or "") for turn in row["messages"]]
        try:
            kept[row["id"]] = encode_pair(tokenizer, prompt, last.content).prompt_tokens
        except Unrendered as error:
            kept[row["id"]] = error.reason
    lost = "the chat template does not write a turn of the role {}"
    system = "<|system|>\nUse tools.\n<|user|>\nWeather in Oslo?\n<|assistant|>\n"
    assert kept == {
        "tool": lost.format("tool"),
        "call-null": lost.format("environment"),  # "21 degrees" stands in the answer, too.
        "functions": len(ids(bare, system)),
        "developer": lost.format("developer"),
    }


def test_a_turn_may_move_or_be_written_as_json_but_not_hide_in_another(bare: Tokenizer) -> None:
    moves = chat(bare, MISTRAL, bos_token="<s>", eos_token="</s>")
    turns = [
        Message(*turn) for turn in (("system", "Oslo"), ("user", "Why Oslo?"), ("assistant", "no"), ("user", "or"))
    ]
    expected = "<s>[INST]Why Oslo?[/INST]no</s>[INST]Oslo\n\nor[/INST]"
    assert encode_pair(moves, turns, "yes") == (ids(bare, f"{expected}yes</s>"), len(ids(bare, expected)))
    drops = chat(bare, case("three-roles-no-bos").replace("'system'", "'nobody'"), eos_token="</s>")
    with pytest.raises(Unrendered, match="a turn of the role system"):
        encode_pair(drops, turns, "yes")
    as_json = case("chatml").replace("m['content']", "(m['content'] | tojson if m['role'] == 'tool' else m['content'])")
    tool = [Message("user", "Oslo?"), Message("assistant", "look"), Message("tool", '{"sky":\n "blau ü"}')]
    assert encode_pair(chat(bare, as_json), tool, "blue").ids[-1] == bare.token_to_id("<|im_end|>")


def test_a_thought_that_a_template_takes_out_of_a_conversation_is_counted(bare: Tokenizer) -> None:
    turns = [Message("user", "a"), Message("assistant", "<think>b</think>c"), Message("user", "d")]
    with pytest.raises(Unrendered, match="a turn of the role assistant"):
        encode_pair(chat(bare, QWEN3), turns, "e")
    drops = case("chatml").replace("m['content']", "m['content'].split('</think>')[-1]")
    with pytest.raises(Unrendered, match="does not write its answer as it is"):
        encode_pair(chat(bare, drops), "a", "<think>b</think>c")


def test_a_prompt_of_which_the_template_drops_something_is_refused(bare: Tokenizer) -> None:
    cuts = chat(bare, case("chatml").replace("m['content']", "m['content'].split('###')[0]"))
    with pytest.raises(
        RequestError, match=r"prompt 'pack ### nuts': the chat template leaves out a turn of the role user"
    ):
        encode_prompt(cuts, "pack ### nuts")


def test_a_tokenizer_without_offsets_is_right_or_refuses() -> None:
    from transformers import ByT5Tokenizer

    slow: Any = ByT5Tokenizer(extra_ids=0)
    slow.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    slow.chat_template = case("chatml")
    assert not slow.is_fast
    start, end = slow.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    whole, prompt_tokens = encode_pair(slow, "né", "où")

    def of_bytes(text: str) -> list[int]:
        return [byte + 3 for byte in text.encode()]

    prompt = [start, *of_bytes("user\nné"), end, *of_bytes("\n"), start, *of_bytes("assistant\n")]
    assert (whole, prompt_tokens) == ([*prompt, *of_bytes("où"), end], len(prompt))


def test_a_token_across_the_border_without_offsets_is_counted(bare: Tokenizer) -> None:
    class Blind(type(chat(bare, ""))):  # type: ignore[misc]
        """A tokenizer of which nobody knows where its tokens stand."""

        is_fast = False

    tokenizer = Blind(tokenizer_object=bare, eos_token="<|endoftext|>")
    tokenizer.chat_template = case("chatml")
    assert encode_pair(tokenizer, "pack nuts", "take") == encode_pair(chat(bare, case("chatml")), "pack nuts", "take")
    with pytest.raises(Unrendered, match="a token stands across the border"):
        encode_pair(tokenizer, "pack nuts", "\n take")


def test_what_was_rendered_is_what_transformers_itself_tokenises(bare: Tokenizer) -> None:
    tokenizer = chat(bare, case("chatml"))
    turns = [{"role": "user", "content": "pack nuts"}]
    theirs = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert encode_prompt(tokenizer, "pack nuts") == theirs
    assert rendered(tokenizer, [Message("user", "pack nuts")], generation=True) == OPENING
