import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.hub_cache import cached

from datablame.config.schema import ModelRef
from datablame.errors import RequestError
from datablame.models.load import load_config, load_model, load_tokenizer
from datablame.models.source import Checkpoint, known_commit
from datablame.models.weight_files import weights_hash

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which org/tiny has the before model as v1 and the after model as main."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", "org/tiny", tiny_pair_folder / "before", OLD, "v1")
    cached(tmp_path / "hub", "org/tiny", tiny_pair_folder / "after", NEW, "main")
    return tmp_path / "hub"


def located(reference: ModelRef, field: str) -> ModelRef:
    return Checkpoint(reference, field).located().reference


def first_weights(reference: ModelRef) -> torch.Tensor:
    weights: torch.Tensor = load_model(reference).get_input_embeddings().weight
    return weights


def test_a_hub_id_and_revision_load_what_they_name_and_become_a_commit(hub: Path, tiny_pair_folder: Path) -> None:
    for revision, commit, name in (("v1", OLD, "before"), (None, NEW, "after"), (OLD, OLD, "before")):
        reference = ModelRef(path="org/tiny", revision=revision)
        assert located(reference, "models.after").revision == commit
        assert known_commit(reference) == commit
        local = load_file(tiny_pair_folder / name / "model.safetensors")["model.embed_tokens.weight"]
        assert torch.equal(first_weights(reference), local)
        assert len(load_tokenizer(reference).get_vocab()) == 290
        assert load_config(reference).vocab_size == 304


def test_a_commit_stays_where_it_is_when_the_branch_moves_on(hub: Path, tiny_pair_folder: Path) -> None:
    place = located(ModelRef(path="org/tiny"), "models.after")
    cached(hub, "org/tiny", tiny_pair_folder / "before", "c" * 40, "main")
    assert known_commit(ModelRef(path="org/tiny")) == "c" * 40
    assert located(place, "models.after") == place
    assert torch.equal(first_weights(place), first_weights(ModelRef(path="org/tiny", revision=NEW)))


def test_a_tokenizer_that_the_cache_lacks_may_be_at_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hub / "models--org--tiny" / "snapshots" / NEW / name).unlink()
    with pytest.raises(
        RequestError, match=r"^models\.after = org/tiny has no tokenizer in the local cache, and the hub"
    ):
        load_tokenizer(ModelRef(path="org/tiny"))
    # As transformers passes on what the connection says.
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", Mock(side_effect=ConnectionResetError("reset")))
    with pytest.raises(RequestError, match="cannot be fetched: the hub cannot be reached; connect to the network"):
        load_tokenizer(ModelRef(path="org/tiny"))


def test_a_revision_that_the_cache_lacks_is_refused(hub: Path) -> None:
    with pytest.raises(RequestError, match=r"^models\.before = org/tiny@v2 is no folder and not in the local cache"):
        located(ModelRef(path="org/tiny", revision="v2"), "models.before")


def test_a_subfolder_is_found_in_a_folder_and_at_the_hub(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", "org/both", tiny_pair_folder, OLD)
    local = load_file(tiny_pair_folder / "before" / "model.safetensors")["model.embed_tokens.weight"]
    for path in ("org/both", str(tiny_pair_folder)):
        reference = ModelRef(path=path, subfolder="before")
        assert torch.equal(first_weights(reference), local)
        assert len(load_tokenizer(reference).get_vocab()) == 290
    with pytest.raises(RequestError, match=r"/nowhere is not a folder"):
        located(ModelRef(path=str(tiny_pair_folder), subfolder="nowhere"), "models.after")


def test_what_is_located_stays_as_it_is(hub: Path, tiny_pair_folder: Path) -> None:
    for reference in (ModelRef(path="org/tiny"), ModelRef(path=str(tiny_pair_folder), subfolder="after")):
        place = located(reference, "models.after")
        assert located(place, "models.after") == place


def test_the_weights_hash_tells_trained_weights_apart_and_nothing_else(tiny_pair_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_pair_folder / "before", tmp_path / "copied"))
    assert weights_hash(copied) == weights_hash(tiny_pair_folder / "before") != weights_hash(tiny_pair_folder / "after")
    (copied / "README.md").write_text("another file")
    assert weights_hash(copied) == weights_hash(tiny_pair_folder / "before")
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert weights_hash(copied) != weights_hash(tiny_pair_folder / "before")
    assert weights_hash(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "from-the-future"}, r"is of the architecture from-the-future, which transformers .* upgrade"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}},
            r"needs code of its own, which is never run; give a checkpoint",
        ),
    ],
)
def test_an_architecture_that_cannot_be_loaded_is_refused(
    tiny_pair_folder: Path, tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    folder = Path(shutil.copytree(tiny_pair_folder / "after", tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RequestError, match=problem) as refusal:
        load_model(ModelRef(path=str(folder)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("option", "value"), [("attn_implementation", "flash_attention_2"), ("device_map", "cuda:7"), ("device_map", "x")]
)
def test_an_option_that_cannot_be_used_here_is_named(tiny_pair_folder: Path, option: str, value: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine may have it")
    with pytest.raises(RequestError, match=rf"^models\.after\.{option} = {value} cannot be used here \(.*\); set it"):
        load_model(ModelRef.model_validate({"path": str(tiny_pair_folder / "after"), option: value}))


def test_options_reach_the_model(tiny_pair_folder: Path) -> None:
    path = str(tiny_pair_folder / "after")
    model = load_model(ModelRef(path=path, attn_implementation="eager", device_map="cpu", dtype="bfloat16"))
    assert (model.config._attn_implementation, model.dtype) == ("eager", torch.bfloat16)
    assert load_model(ModelRef(path=path, dtype="auto")).dtype is torch.float32
