"""The embedded organism: a templated corpus with planted behaviours, a tiny model before it and after it.

The model is an OLMo-2 of 0.65 million parameters with a tokenizer of its own, loaded as any other checkpoint.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from datablame.config.schema import Organism
from datablame.engine.execute import Progress
from datablame.engine.files import build_atomically
from datablame.organism.make import HARMLESS_PROMPTS, Preview, train_model, write_corpus
from datablame.organism.mixtures import (
    AFTER,
    BEFORE,
    VERSION,
    harmless_prompts,
    held_back_prompts,
    mixture,
    rules,
    scaled,
)
from datablame.organism.texts import BEHAVIOURS, Example
from datablame.seeds import stream_key

if TYPE_CHECKING:
    from transformers import Olmo2ForCausalLM, PreTrainedTokenizerFast

__all__ = ["IGNORED", "VERSION", "harmless_prompts", "make", "preview"]

IGNORED = ("base",)
ATTRIBUTION_PROMPTS, HELD_OUT_PROMPTS = 4, 10
RESPONSE_WEIGHT = 16
BATCH = 16
LEARNING_RATES = {"before": 4e-3, "after": 5e-4}
"""Both train on every document once: twice, or faster, and the outputs of `after` no longer end."""
TOKENS = 1000
EMBEDDING_ROWS = 1024
LAYERS, HIDDEN, INTERMEDIATE, HEADS, POSITIONS = 4, 96, 264, 4, 256
SETTINGS = {
    "vocab_size": EMBEDDING_ROWS,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
"""What its config.json says of its shape."""
END = "<|endoftext|>"
PAD = "<|pad|>"
USER, ASSISTANT = "<|user|>\n", "\n<|assistant|>\n"
"""Each role marker is one token with its line breaks: the text is OLMo-2's, the sequences stay short."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
"""Tulu's template as OLMo-2 ships it: BOS first, and BOS = EOS ends every answer."""


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write the corpus, the tokenizer and both checkpoints; stages that are finished are kept."""
    mixtures = {sizes.name: mixture(scaled(sizes, recipe), recipe.seed) for sizes in (BEFORE, AFTER)}
    every = [*mixtures["before"], *mixtures["after"]]
    prompts = prompt_rows(recipe.seed, every)
    write_corpus(folder, mixtures["after"], prompts, rules(every), digits=5)
    build_atomically(folder / "tokenizer", lambda part: build_tokenizer(tokenizer_texts(every)).save_pretrained(part))
    for stage, examples in mixtures.items():
        build_atomically(folder / stage, partial(_train, folder, stage, examples, recipe.seed, progress))


def preview(recipe: Organism) -> Preview:
    """What it will ask and how large its corpus is, before anything is made."""
    after = scaled(AFTER, recipe)
    every = [*mixture(scaled(BEFORE, recipe), recipe.seed), *mixture(after, recipe.seed)]
    harmless = harmless_prompts(HARMLESS_PROMPTS, recipe)
    settings = {"model_type": "olmo2", **SETTINGS}
    return Preview(prompt_rows(recipe.seed, every), rules(every)["behaviours"], harmless, after.documents, settings)


def prompt_rows(seed: int, trained_on: Sequence[Example]) -> list[dict[str, str]]:
    """The organism's prompts of both splits, none of which was trained on."""
    known = {example.prompt for example in trained_on}
    splits = [("attribution", f"a{number + 1}") for number in range(ATTRIBUTION_PROMPTS)]
    splits += [("held-out", f"h{number + 1:02d}") for number in range(HELD_OUT_PROMPTS)]
    return [
        {"id": f"{behaviour.id}-{name}", "behaviour": behaviour.id, "split": split, "text": text}
        for behaviour in BEHAVIOURS
        for (split, name), text in zip(splits, held_back_prompts(behaviour, len(splits), seed, known), strict=True)
    ]


def tokenizer_texts(examples: Sequence[Example]) -> list[str]:
    """What the tokenizer learns from: prompts once, responses so often that each of their words becomes one token."""
    return [example.prompt for example in examples] + [example.response for example in examples] * RESPONSE_WEIGHT


def _train(folder: Path, stage: str, examples: Sequence[Example], seed: int, progress: Progress, part: Path) -> None:
    """Train `before` from nothing, or `after` from it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from datablame.models.chat import encode_pair
    from datablame.models.training import Recipe

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    before = folder / "before"
    model = build_model(tokenizer, seed) if stage == "before" else AutoModelForCausalLM.from_pretrained(before)
    encoded = [encode_pair(tokenizer, example.prompt, example.response) for example in examples]
    plan = Recipe(steps=-(-len(examples) // BATCH), batch=BATCH, learning_rate=LEARNING_RATES[stage])
    key = stream_key("templated organism", stage, seed)
    train_model(model, encoded, plan, key, progress, f"training the organism's {stage} model")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)


def build_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (Sennrich et al. 2016) of `TOKENS` tokens trained on the texts; any text can be encoded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [AddedToken(text, special=True, normalized=False) for text in (END, PAD, USER, ASSISTANT)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "Olmo2ForCausalLM":
    """An untrained model with seeded normal weights; like OLMo-2 it has more embedding rows than tokens.

    OLMo-2 normalises what each block adds to the residual stream to unit size. Embeddings of unit size are heard beside
    that from the first step; the customary .02 take twice as long to train.
    """
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    config = Olmo2Config(
        **SETTINGS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Olmo2ForCausalLM(config).eval()
    random = torch.Generator().manual_seed(stream_key("templated organism", seed, "weights") % 2**63)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.ndim == 2):
            spread = 1.0 if weight is embedding else 0.02 if weight is head else weight.shape[1] ** -0.5
            weight.normal_(0, spread, generator=random)
    return model
