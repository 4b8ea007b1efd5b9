"""Two checkpoints whose tokens differ in what was added, and in what ends an output."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import nudged, tiny_model, tiny_tokenizer
from tests.pairs import loaded, study_of
from tests.pipeline.small import small_study
from tests.worlds import ONE, frozen

from datablame.config.schema import Study
from datablame.engine.execute import Silent
from datablame.errors import RequestError
from datablame.models.chat import encode_prompt
from datablame.models.tokenizer_file import ids_of
from datablame.surface.phase import draw, sample_specs
from datablame.world.freeze import ensure_pool
from datablame.world.world import prompts_of

Change = Callable[[Any], None]
ALL = tuple(range(290))


def as_it_is(tokenizer: Any) -> None:
    """Nothing changed."""


def write(folder: Path, rows: int, change: Change = as_it_is, seed: int = 1) -> Path:
    """A checkpoint of so many rows with the tiny tokenizer, changed."""
    tokenizer, model = tiny_tokenizer(), nudged(tiny_model(1, 304), seed)
    change(tokenizer)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adding(*tokens: str, **special: str) -> Change:
    def add(tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": [*tokens]}, replace_extra_special_tokens=False)
        for name, token in special.items():
            setattr(tokenizer, name, token)

    return add


def pair_of(tmp_path: Path, before: tuple[int, Change], after: tuple[int, Change], **models: Any) -> Any:
    return loaded(write(tmp_path / "before", *before), write(tmp_path / "after", *after, seed=2), **models)


def drawn(pair: Any, study: Study, alpha: float = 2.0, n: int = 24) -> list[Any]:
    prompts = [prompt for prompt in prompts_of(study) if prompt.split == "attribution"]
    return draw(pair.after, pair.before, pair.agreed, sample_specs(prompts, (alpha,), range(n)), study)


@pytest.fixture
def study() -> Study:
    plain = study_of("unused", "unused")
    return plain.model_copy(
        update={"surface": plain.surface.model_copy(update={"max_new_tokens": 6, "plausibility": 0.0})}
    )


def test_an_added_padding_token_and_resized_embeddings_are_served(tmp_path: Path, study: Study) -> None:
    """As Alpaca's [PAD]: before has 290 rows, after one more, which can never be drawn."""
    pair = pair_of(tmp_path, (290, as_it_is), (291, adding("[PAD]", pad_token="[PAD]")))
    tokens = pair.agreed.tokens
    assert (tokens.tokenizer, tokens.vocabulary_size, tokens.masked_ids) == ("before", 290, ())
    assert (tokens.rows, tokens.only_before, tokens.only_after) == ((290, 291), (), ("[PAD]",))
    # The text is no token: before would have no row for it.
    assert max(encode_prompt(pair.tokenizer, "what is [PAD] ?")) < 290
    assert pair.tokenizer.chat_template == tiny_tokenizer().chat_template
    with torch.no_grad():
        pair.after.lm_head.weight[290] = 50 * pair.after.lm_head.weight[1]
    assert {token for sample in drawn(pair, study) for token in sample.token_ids} <= set(ALL)


@pytest.mark.parametrize("sides", [(0, 1), (1, 0)])
def test_a_padding_token_in_a_spare_row_is_never_drawn(tmp_path: Path, study: Study, sides: tuple[int, int]) -> None:
    """Whichever checkpoint has it: the other's row was never trained, and amplifying the difference would draw it."""
    changes = (as_it_is, adding("<pad>", pad_token="<pad>"))
    pair = pair_of(tmp_path, (304, changes[sides[0]]), (304, changes[sides[1]]))
    assert pair.vocabulary_size == 290
    with torch.no_grad():
        pair.after.lm_head.weight[290], pair.before.lm_head.weight[290] = 9.0, -9.0
    assert {token for sample in drawn(pair, study) for token in sample.token_ids} <= set(ALL)


def test_two_names_for_one_padding_token_are_no_difference(tmp_path: Path) -> None:
    before, after = (adding(name, pad_token=name) for name in ("[PAD]", "<pad>"))
    tokens = pair_of(tmp_path, (291, before), (291, after)).agreed.tokens
    assert (tokens.vocabulary_size, tokens.only_before, tokens.only_after) == (290, ("[PAD]",), ("<pad>",))


def test_outputs_stop_at_the_end_of_text_of_either_checkpoint(tmp_path: Path, study: Study) -> None:
    """As a base whose EOS is <|endoftext|> and an instruct model that ends with a token that both have."""
    pair = pair_of(tmp_path, (304, adding(eos_token="<|user|>")), (304, as_it_is))
    tokens = pair.agreed.tokens
    assert (tokens.stop_ids, tokens.eos) == ((1, 2), ("<|user|>", "<|endoftext|>"))
    assert pair.stop_ids == (1, 2)
    assert (pair.tokenizer.eos_token_id, tokens.tokenizer, tokens.vocabulary_size) == (1, "after", 290)
    # Logits are 0 but for one end, which is drawn at once.
    for stop in (1, 2):
        for model in (pair.after, pair.before):
            model.lm_head.register_forward_hook(
                lambda _, __, logits, stop=stop: 40.0 * (torch.arange(304) == stop) + 0 * logits
            )
        assert {(sample.token_ids, sample.finish_reason) for sample in drawn(pair, study)} == {((), "stop")}
        for model in (pair.after, pair.before):
            model.lm_head._forward_hooks.clear()


def test_the_ends_that_the_settings_of_before_name_end_outputs_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "before", 304)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, 3]}))
    assert loaded(folder, write(tmp_path / "after", 304, seed=2)).stop_ids == (1, 3)


def test_an_end_of_turn_in_a_spare_row_is_drawn_and_what_lies_below_it_is_not(tmp_path: Path, study: Study) -> None:
    """As a ChatML fine-tune of a base with padding rows: 290 and 291 are masked, 292 ends outputs."""
    added = adding("<pad>", "<|im_start|>", "<|im_end|>", pad_token="<pad>", eos_token="<|im_end|>")
    pair = pair_of(tmp_path, (304, as_it_is), (304, added))
    tokens = pair.agreed.tokens
    assert (tokens.tokenizer, tokens.vocabulary_size, tokens.masked_ids) == ("after", 293, (290, 291))
    assert tokens.stop_ids == (1, 292)
    assert ids_of(pair.tokenizer, "<|im_end|>") == [292]
    # Of three tokens of one logit, far above all others, only the end can be drawn.
    for model in (pair.after, pair.before):
        model.lm_head.register_forward_hook(lambda _, __, logits: 40.0 * (torch.arange(304) >= 290) + 0 * logits)
    for alpha in (0.0, 2.0):
        assert {(sample.token_ids, sample.finish_reason) for sample in drawn(pair, study, alpha)} == {((), "stop")}


def test_a_mark_of_the_template_that_only_after_has_can_be_drawn(tmp_path: Path) -> None:
    """The end of a turn need not be the tokenizer's EOS."""

    def chat(tokenizer: Any) -> None:
        adding("<pad>", "<|im_end|>")(tokenizer)
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "<|im_end|>")

    tokens = pair_of(tmp_path, (304, as_it_is), (304, chat), chat_template="after").agreed.tokens
    assert (tokens.vocabulary_size, tokens.masked_ids, tokens.stop_ids) == (292, (290,), (1, 291))


def test_log_probabilities_are_over_the_tokens_that_can_be_drawn(tmp_path: Path, study: Study) -> None:
    added = adding("<pad>", "<|im_end|>", eos_token="<|im_end|>")
    pair = pair_of(tmp_path, (304, as_it_is), (304, added))
    drawable = [*range(290), 291]
    prompt = encode_prompt(pair.tokenizer, next(p.text for p in prompts_of(study) if p.split == "attribution"))
    specs = sample_specs([p for p in prompts_of(study) if p.split == "attribution"], (1.0,), range(8))
    samples = draw(pair.after, pair.before, pair.agreed, specs, study, log_probabilities=True)
    # A stop token is not in token_ids, and cut outputs have none.
    cut = [sample for sample in samples if sample.finish_reason == "length"]
    assert cut
    for sample in cut:
        ids = torch.tensor([[*prompt, *sample.token_ids]])
        with torch.inference_mode():
            log_p = pair.after(input_ids=ids).logits[0, len(prompt) - 1 : -1, drawable].double().log_softmax(-1)
        rows = [drawable.index(token) for token in sample.token_ids]
        expected = log_p[range(len(rows)), rows].sum().item()
        assert sample.log_p_after == pytest.approx(expected, rel=1e-4)


def test_a_token_that_outputs_need_and_before_has_no_row_for_is_refused_with_the_remedy(tmp_path: Path) -> None:
    after = adding("<|im_end|>", eos_token="<|im_end|>")
    with pytest.raises(RequestError) as refusal:
        pair_of(tmp_path, (290, as_it_is), (291, after))
    assert str(refusal.value) == (
        "models.before: its embedding has 290 rows and none for '<|im_end|>' (id 290), which ends outputs of "
        "models.after or stands in the chat template; save it with resize_token_embeddings(291), or set "
        "models.chat_template to a template without that token"
    )


def test_a_template_that_writes_tokens_without_rows_is_refused(tmp_path: Path) -> None:
    def chat(tokenizer: Any) -> None:
        adding("<|im_start|>")(tokenizer)
        template = tokenizer.chat_template.replace("'<|'", "'<|im_start|>'")
        tokenizer.chat_template = template.replace("'<|assistant|>'", "'<|im_start|>assistant|>'")

    with pytest.raises(RequestError, match=r"290 rows and none for '<\|im_start\|>' \(id 290\)"):
        pair_of(tmp_path, (290, as_it_is), (291, chat), chat_template="after")


def test_marks_of_turns_that_swapped_their_ids_are_refused(tmp_path: Path) -> None:
    before, after = adding("<|a|>", "<|b|>"), adding("<|b|>", "<|a|>", eos_token="<|a|>")
    with pytest.raises(RequestError, match=r"'<\|a\|>' is token id 290 in one and 291 in the other; use checkpoints"):
        pair_of(tmp_path, (304, before), (304, after))


def test_words_that_only_one_vocabulary_has_are_refused(tmp_path: Path) -> None:
    """As a vocabulary that was extended for a language: texts are cut in two ways."""
    before = write(tmp_path / "before", 304)
    after = write(tmp_path / "after", 304, seed=2)
    tiny_tokenizer(vocabulary=295).save_pretrained(after)
    with pytest.raises(RequestError, match=r"token id 290 is unused in one and '.*' in the other; use checkpoints"):
        loaded(before, after)


def test_other_special_marks_and_bos_are_no_difference(tmp_path: Path) -> None:
    """As SmolLM2, whose instruct model begins and ends texts with ChatML's marks, which its base has too."""
    before, after = adding(), adding(bos_token="<|user|>", eos_token="<|assistant|>", pad_token="<|assistant|>")
    pair = pair_of(tmp_path, (304, before), (304, after))
    assert pair.agreed.tokens == replace(pair.agreed.tokens, tokenizer="after", vocabulary_size=290, stop_ids=(1, 3))
    assert pair.tokenizer.bos_token == "<|user|>"


def test_texts_with_a_token_that_no_embedding_has_a_row_for_are_left_out_and_such_a_prompt_is_refused(
    tmp_path: Path,
) -> None:
    for name, seed in (("before", 1), ("after", 2)):
        write(tmp_path / name, 290, adding("<mask>"), seed)
    study = small_study(tmp_path / "files", tmp_path)
    with (tmp_path / "files" / "pool.jsonl").open("a") as pool:
        pool.write(json.dumps({"id": "masked", "prompt": "what is <mask> ?", "completion": "a lake ."}) + "\n")
    world = frozen(study, tmp_path / "run")
    ensure_pool(world, execution=ONE, progress=Silent())
    assert world.pool.summary.excluded == {"a token of it has no row in the embedding of a checkpoint": 1}
    prompts = {"attribution": [{"id": "a1", "behaviour": "walk", "text": "name a <mask> ."}]}
    with pytest.raises(RequestError, match=r"prompt 'a1' holds '<mask>' \(id 290\), and an embedding has 290 rows"):
        frozen(small_study(tmp_path / "files", tmp_path, prompts=prompts), tmp_path / "other")
