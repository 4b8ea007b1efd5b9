import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.pairs import loaded, models_of

from datablame.config.schema import ModelRef, Models
from datablame.errors import RequestError
from datablame.models.load import load_model, load_tokenizer
from datablame.models.pair import agreed_tokens, check_context

if TYPE_CHECKING:
    from datablame.models.pair import Pair


def models(folder: Path) -> Models:
    return models_of(folder / "before", folder / "after")


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_pair_is_loaded_with_its_vocabulary_and_stop_tokens(tiny_pair: "Pair") -> None:
    assert (tiny_pair.vocabulary_size, tiny_pair.stop_ids) == (290, (1,))
    for model in (tiny_pair.before, tiny_pair.after):
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())
        assert model.dtype == torch.float32


def test_loading_says_nothing(tiny_pair_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded(tiny_pair_folder / "before", tiny_pair_folder / "after")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", "models.after = ./nowhere is not a folder; give a checkpoint's folder or a hub id"),
        ("{tmp}", "models.after = {tmp} has no config.json; give a folder that save_pretrained wrote"),
        (
            "no-such/model",
            "models.after = no-such/model is no folder and not in the local cache of the hub, and HF_HUB_OFFLINE is "
            "set; unset it, or give a checkpoint's folder",
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        load_tokenizer(ModelRef(path=path.format(tmp=tmp_path)))
    assert str(refusal.value).startswith(message.format(tmp=tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_without_weights_is_refused(folder: Path) -> None:
    (folder / "after" / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"has no model\.safetensors; give a folder"):
        load_model(models(folder).after)


def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "after" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.base_layer.weight"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"lacks 1 weights, the first is model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(models(folder).after)


def test_the_first_token_that_differs_is_named(folder: Path) -> None:
    def swap(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        by_id = {token: text for text, token in vocabulary.items()}
        vocabulary[by_id[17]], vocabulary[by_id[40]] = 40, 17

    edit(folder / "before" / "tokenizer.json", swap)
    with pytest.raises(RequestError) as refusal:
        agreed_tokens(models(folder))
    assert str(refusal.value) == (
        "models.before and models.after: token id 17 is 'E' in one and '.' in the other; "
        "use checkpoints with one tokenizer"
    )


def test_another_padding_token_is_no_difference(folder: Path) -> None:
    edit(folder / "before" / "tokenizer_config.json", lambda config: config.update(pad_token="<|endoftext|>"))
    agreed_tokens(models(folder))


def test_another_chat_template_is_refused(folder: Path) -> None:
    template = folder / "before" / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|assistant|>'", "'<|assistant|>\n'"))
    with pytest.raises(RequestError, match=r"chat templates differ, from character \d+ .* on: '\\n' in one and '' in"):
        agreed_tokens(models(folder))


def test_a_before_without_a_chat_template_is_taken(folder: Path) -> None:
    (folder / "before" / "chat_template.jinja").unlink()
    agreed_tokens(models(folder))


def test_a_chat_template_is_read_out_of_json(folder: Path) -> None:
    expected = (folder / "after" / "chat_template.jinja").read_text()
    several = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": expected}]
    for name, value in (("chat_template.json", expected), ("tokenizer_config.json", several)):
        (folder / name).write_text(json.dumps({"chat_template": value}))
        named = models(folder).model_copy(update={"chat_template": str(folder / name)})
        assert agreed_tokens(named).tokenizer.chat_template == expected
    (folder / name).write_text("{}")
    with pytest.raises(RequestError, match=r"tokenizer_config\.json cannot be read \(it holds no chat_template\)"):
        agreed_tokens(named)
    (folder / name).write_text(json.dumps({"chat_template": [{"name": "default"}]}))
    with pytest.raises(
        RequestError, match=r"cannot be read \(its chat_template is a list, and not each of it has name"
    ):
        agreed_tokens(named)
    (folder / name).unlink()
    with pytest.raises(RequestError, match=r"tokenizer_config\.json cannot be read \(.*No such file"):
        agreed_tokens(named)
    for side in ("before", "after"):
        (folder / side / "chat_template.jinja").rename(folder / side / "chat_template.json")
        (folder / side / "chat_template.json").write_text(json.dumps({"chat_template": expected}))
    assert agreed_tokens(models(folder)).tokenizer.chat_template == expected
    for side in ("before", "after"):
        edit(folder / side / "tokenizer_config.json", lambda config: config.update(chat_template=several))
    kwargs = {"chat_template_kwargs": {"bos_token": "!"}}  # That the template for tools never mentions.
    agreed = agreed_tokens(models(folder).model_copy(update=kwargs))
    assert agreed.tokenizer.chat_template == '{% set bos_token = "!" %}\n' + expected


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"eos', "is not valid JSON"),
        ('{"eos_token_id": ["</s>"]}', "has eos_token_id = '</s>', no token's id"),
        ('{"eos_token_id": [[1], 2]}', r"has eos_token_id = \[1\], no token's id"),
        ('{"eos_token_id": -1}', None),
    ],
)
def test_ends_that_are_no_ids_are_refused(folder: Path, written: str, said: str | None) -> None:
    (folder / "after" / "generation_config.json").write_text(written)
    if said is None:
        assert agreed_tokens(models(folder)).tokens.stop_ids == (1,)
    else:
        with pytest.raises(RequestError, match=rf"its generation_config\.json {said}; fetch or save it again"):
            agreed_tokens(models(folder))


def test_a_context_too_short_for_prompt_and_output_is_refused() -> None:
    contexts, prompts = {"models.before": 160, "models.after": 160}, {"a": 10, "b": 128}
    check_context(contexts, prompts, 32)
    with pytest.raises(RequestError, match=r"^surface\.max_new_tokens = 33 and the 128 tokens of prompt b are more"):
        check_context(contexts, prompts, 33)
