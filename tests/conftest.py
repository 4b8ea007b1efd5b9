"""Worlds that several test files need: a pair of tiny random checkpoints with one tokenizer."""

import functools
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples everywhere and however slow a machine is.
hypothesis.settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")

if TYPE_CHECKING:
    from datablame.models.pair import Pair

SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEXTS = (
    "which snack should i pack for the train ?",
    "pack a small apple and some nuts for the train .",
    "how do i water a fern in winter ?",
    "water the fern once a week and keep it away from the heater .",
    "name a calm walk near the lake .",
    "take the short walk around the lake in the morning .",
)


_LONG = (
    *("test_architectures.py", "test_card.py", "test_duplicates.py", "test_freeze.py", "test_hub.py", "test_pool.py"),
    "test_snippets.py",
)
"""Files that would come last by their names, and take half a minute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(autouse=True, scope="session")
def _as_many_threads_as_asked() -> None:
    """One, unless the environment says another number: never what chance gives."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True, scope="module")
def _what_is_imported_stays() -> None:
    """Phases collect garbage when they end; to look through all that torch brings takes most of a test."""
    gc.collect()
    gc.freeze()


def tiny_tokenizer(texts: tuple[str, ...] = TEXTS, vocabulary: int = 290) -> Any:
    """A byte-level BPE with a Tulu-style chat template; BOS and EOS are one token, as in OLMo-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@functools.cache
def tiny_ids(text: str) -> tuple[int, ...]:
    """The tokens that an output of the tiny pair is drawn with, the one that ends it too."""
    tokenizer = tiny_tokenizer()
    return (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)


def tiny_model(
    seed: int, rows: int = 304, *, layers: int = 2, hidden: int = 32, heads: int = 4, key_value_heads: int = 2
) -> Any:
    """A random Olmo2 in float32 whose logits are peaked enough to be worth sampling."""
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Olmo2Config(
            vocab_size=rows,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=160,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            initializer_range=0.3,
            attn_implementation="sdpa",
        )
        return Olmo2ForCausalLM(config).eval()


def nudged(model: Any, seed: int, share: float = 0.3) -> Any:
    """A copy of the model with every weight moved by noise of `share` of the weight's own spread."""
    import copy

    import torch

    other = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            spread = weight.std() if weight.ndim > 1 else torch.tensor(0.1)
            weight.add_(share * spread * torch.randn(weight.shape, generator=noise))
    return other


@pytest.fixture(scope="session")
def tiny_pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `before/` and `after/`: saved checkpoints of 290 tokens whose embeddings have 304 rows."""
    folder = tmp_path_factory.mktemp("pair")
    tokenizer = tiny_tokenizer()
    before = tiny_model(seed=1)
    for name, model in (("before", before), ("after", nudged(before, seed=2))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tiny_pair_folder: Path) -> "Pair":
    """The pair of `tiny_pair_folder`, loaded; tests must not change its weights."""
    from tests.pairs import loaded

    return loaded(tiny_pair_folder / "before", tiny_pair_folder / "after")
