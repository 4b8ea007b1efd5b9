import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import pairs
from tests.models.hub_cache import cached
from transformers import Olmo2Config

from datablame.config.schema import ModelRef, Models
from datablame.errors import RequestError
from datablame.models import pair as module
from datablame.models.device import chosen_device
from datablame.models.load import load_config
from datablame.models.pair import agreed_tokens, preflight, weights_bytes
from datablame.models.shared_tokens import vocabulary_of


def models_of(folder: Path, **models: Any) -> Models:
    return pairs.models_of(folder / "before", folder / "after", **models)


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is an error: the preflight comes before it."""
    from transformers import AutoModelForCausalLM

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


@pytest.mark.usefixtures("without_weights")
def test_a_pair_that_fits_is_pinned(tiny_pair_folder: Path) -> None:
    models, configs, (tokenizer, tokens) = preflight(models_of(tiny_pair_folder, device="auto"), workers=2)
    assert models.device == chosen_device("auto")
    assert {field: config.vocab_size for field, config in configs.items()} == dict.fromkeys(
        ("models.before", "models.after"), 304
    )
    assert vocabulary_of(tokenizer) == tokens.vocabulary_size == 290
    assert preflight(models).models == models


@pytest.mark.usefixtures("without_weights")
def test_a_commit_that_is_named_is_taken(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for commit, name in (("a" * 40, "before"), ("b" * 40, "after")):
        cached(tmp_path / "hub", "org/tiny", tiny_pair_folder / name, commit, "main")
    checked = preflight(
        models_of(tiny_pair_folder, before={"path": "org/tiny", "revision": "main"}), commits={"before": "a" * 40}
    )
    assert checked.models.before.revision == "a" * 40


@pytest.mark.usefixtures("without_weights")
def test_an_embedding_smaller_than_the_vocabulary_is_refused(folder: Path) -> None:
    config = json.loads((folder / "before" / "config.json").read_text())
    (folder / "before" / "config.json").write_text(json.dumps(config | {"vocab_size": 280}))
    with pytest.raises(RequestError, match=r"models\.before: its embedding has 280 rows for the 290 tokens"):
        preflight(models_of(folder))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"hidden_size": 48, "num_key_value_heads": 4},
            r"was not trained from models\.before = .*: 0\.self_attn\.q_proj\.weight of their blocks is 48 x 48 in "
            "that and 32 x 32 here; give the checkpoint",
        ),
        ({"model_type": "gpt2"}, r"0\.attn\.c_attn\.weight of their blocks is 32 x 96 in that and absent here"),
        (
            {"dtype": "bf16"},
            r"models\.before = .* cannot be loaded as a model that transformers knows \(module 'torch'",
        ),
        ({"model_type": "bart"}, r"models\.before = .* is of the type bart, which is no causal language model"),
        (
            {"architectures": ["Olmo2ForSequenceClassification"]},
            "was saved as Olmo2ForSequenceClassification, which gives",
        ),
    ],
)
@pytest.mark.usefixtures("without_weights")
def test_what_after_was_not_trained_from_is_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    file = folder / "before" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(RequestError, match=message):
        preflight(models_of(folder))


@pytest.mark.usefixtures("without_weights")
def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "after" / "model.safetensors"
    weights.rename(folder / "after" / "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"models\.after = .* has its weights pickled \(.*\), .* save it again with"):
        preflight(models_of(folder))


@pytest.mark.usefixtures("without_weights")
def test_too_little_memory_for_the_weights_is_refused(tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = models_of(tiny_pair_folder)
    model = weights_bytes(
        module.without_weights(load_config(ModelRef(path=str(tiny_pair_folder / "after")))), torch.float32
    )
    monkeypatch.setattr(module, "free_bytes", lambda device: 4 * model)
    preflight(models, workers=2)
    with pytest.raises(RequestError) as refusal:
        preflight(models, workers=3)
    assert str(refusal.value).startswith("models: the weights of before and after take 0.0 GB in 3 processes, and 0.0 ")
    assert "use fewer --workers, set their dtype to float16" in str(refusal.value)


def test_the_weights_of_olmo_2_1b_are_counted_from_its_configuration() -> None:
    config = Olmo2Config(
        vocab_size=100352,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        intermediate_size=8192,
        tie_word_embeddings=False,
    )
    blocks = 16 * (4 * 2048**2 + 3 * 2048 * 8192 + 4 * 2048)
    assert weights_bytes(module.without_weights(config), torch.float16) == 2 * (2 * 100352 * 2048 + blocks + 2048)
    config.tie_word_embeddings = True
    assert weights_bytes(module.without_weights(config), torch.float32) == 4 * (100352 * 2048 + blocks + 2048)


def test_templates_that_differ_in_any_byte_are_refused_until_one_is_named(folder: Path, tmp_path: Path) -> None:
    after = (folder / "after" / "chat_template.jinja").read_text()
    (folder / "before" / "chat_template.jinja").write_text(after + "{# the same for one user turn #}")
    with pytest.raises(RequestError, match=r"the chat templates differ, though one user turn is written alike .* set"):
        preflight(models_of(folder))
    for name in ("before", "after"):
        agreed = agreed_tokens(models_of(folder, chat_template=name))
        assert agreed.tokenizer.chat_template == (folder / name / "chat_template.jinja").read_text()
    own = tmp_path / "own.jinja"
    own.write_text(after.replace("'<|'", "'the <|'").replace("'<|assistant|>'", "'the <|assistant|>'"))
    assert preflight(models_of(folder, chat_template=str(own))).agreed.tokenizer.chat_template == own.read_text()
    pair = pairs.loaded(folder / "before", folder / "after", chat_template=str(own))
    assert pair.agreed.tokenizer.chat_template == own.read_text()


def test_a_template_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"^models\.chat_template = /nowhere\.jinja cannot be read \(.*\); give"):
        preflight(models_of(folder, chat_template="/nowhere.jinja"))
    (folder / "before" / "chat_template.jinja").unlink()
    with pytest.raises(RequestError, match=r"^models\.chat_template = before: that checkpoint has none; name another"):
        preflight(models_of(folder, chat_template="before"))
