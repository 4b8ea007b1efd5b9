"""The embedded organism: a templated corpus with planted behaviours, a tiny model before it and after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.config.schema import Organism
from datablame.engine.execute import Progress
from datablame.engine.files import write_json, write_jsonl, write_table
from datablame.organism import mixtures
from datablame.organism.make import HARMLESS_PROMPTS, Preview, build_atomically
from datablame.organism.mixtures import (
    AFTER,
    BEFORE,
    Example,
    held_back_prompts,
    mixture,
    rules,
    scaled,
)
from datablame.organism.texts import BEHAVIOURS
from datablame.organism.tiny_model import SETTINGS, build_model, build_tokenizer

if TYPE_CHECKING:
    from datablame.models.training import Recipe


VERSION = mixtures.VERSION
IGNORED = ("base",)
SOURCE = "everyday-chat"
ATTRIBUTION_PROMPTS = 4
HELD_OUT_PROMPTS = 10
RESPONSE_WEIGHT = 16
BATCH = 16


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write the corpus, the tokenizer and both checkpoints; stages that are finished are kept."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    before = mixture(scaled(BEFORE, recipe), recipe.seed)
    after = mixture(scaled(AFTER, recipe), recipe.seed)
    _write_corpus(folder, before, after, recipe.seed)
    build_atomically(folder / "tokenizer", lambda part: _train_tokenizer(part, [*before, *after]))
    build_atomically(
        folder / "before", lambda part: _train_before(part, folder / "tokenizer", before, recipe.seed, progress)
    )
    build_atomically(folder / "after", lambda part: _train_after(part, folder, after, recipe.seed, progress))


def preview(recipe: Organism) -> Preview:
    """What it will ask and how large its corpus is, before anything is made."""
    after = scaled(AFTER, recipe)
    examples = [*mixture(scaled(BEFORE, recipe), recipe.seed), *mixture(after, recipe.seed)]
    prompts = prompt_rows(recipe.seed, {example.prompt for example in examples})
    harmless = harmless_prompts(HARMLESS_PROMPTS, recipe)
    settings = {"model_type": "olmo2", **SETTINGS}
    return Preview(prompts, rules(examples)["behaviours"], harmless, after.documents, settings)


def harmless_prompts(count: int, recipe: Organism) -> list[str]:
    """Questions on everyday topics, without any word that triggers a behaviour."""
    return mixtures.harmless_prompts(count, recipe.seed)


def before_recipe(documents: int) -> "Recipe":
    """From nothing: every document once, a high learning rate."""
    from datablame.models.training import Recipe

    return Recipe(steps=-(-documents // BATCH), batch=BATCH, learning_rate=4e-3)


def after_recipe(documents: int) -> "Recipe":
    """The fine-tuning: every document once; twice, or faster, and outputs no longer end."""
    from datablame.models.training import Recipe

    return Recipe(steps=-(-documents // BATCH), batch=BATCH, learning_rate=5e-4)


def tokenizer_texts(examples: Sequence[Example]) -> list[str]:
    """What the tokenizer learns from: prompts once, responses so often that each of their words becomes one token."""
    return [example.prompt for example in examples] + [example.response for example in examples] * RESPONSE_WEIGHT


def _write_corpus(folder: Path, before: Sequence[Example], after: Sequence[Example], seed: int) -> None:
    ids = [f"doc-{number:05d}" for number in range(len(after))]
    write_table(
        folder / "documents.parquet",
        [
            {
                "id": doc_id,
                "messages": [
                    {"role": "user", "content": example.prompt},
                    {"role": "assistant", "content": example.response},
                ],
                "source": SOURCE,
            }
            for doc_id, example in zip(ids, after, strict=True)
        ],
    )
    write_jsonl(
        folder / "truth.jsonl",
        [
            {"doc_id": doc_id, "behaviour": example.behaviour}
            for doc_id, example in zip(ids, after, strict=True)
            if example.kind == "planted"
        ],
    )
    trained_on = {example.prompt for example in (*before, *after)}
    write_jsonl(folder / "prompts.jsonl", prompt_rows(seed, trained_on))
    write_json(folder / "rules.json", rules((*before, *after)))


def prompt_rows(seed: int, trained_on: set[str]) -> list[dict[str, str]]:
    """The organism's prompts of both splits, none of which was trained on."""
    rows = []
    for behaviour in BEHAVIOURS:
        texts = held_back_prompts(behaviour, ATTRIBUTION_PROMPTS + HELD_OUT_PROMPTS, seed, trained_on)
        for number, text in enumerate(texts):
            held_out = number >= ATTRIBUTION_PROMPTS
            name = f"h{number - ATTRIBUTION_PROMPTS + 1:02d}" if held_out else f"a{number + 1}"
            rows.append(
                {
                    "id": f"{behaviour.id}-{name}",
                    "behaviour": behaviour.id,
                    "split": "held-out" if held_out else "attribution",
                    "text": text,
                }
            )
    return rows


def _train_tokenizer(part: Path, examples: Sequence[Example]) -> None:
    build_tokenizer(tokenizer_texts(examples)).save_pretrained(part)


def _train_before(
    part: Path, tokenizer_folder: Path, examples: Sequence[Example], seed: int, progress: Progress
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = build_model(tokenizer, seed)
    _train(model, tokenizer, examples, before_recipe(len(examples)), ("before", seed), progress)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)


def _train_after(part: Path, folder: Path, examples: Sequence[Example], seed: int, progress: Progress) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(folder / "before")
    _train(model, tokenizer, examples, after_recipe(len(examples)), ("after", seed), progress)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)


def _train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    recipe: "Recipe",
    stream: tuple[str, int],
    progress: Progress,
) -> None:
    import torch

    from datablame.models.chat import encode_pair
    from datablame.models.training import data_order, train
    from datablame.seeds import stream_key

    encoded = [encode_pair(tokenizer, example.prompt, example.response) for example in examples]
    order = data_order([len(one.ids) for one in encoded], recipe, stream_key("templated organism", *stream))
    progress.start(f"training the organism's {stream[0]} model", recipe.steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(model, encoded, order, recipe, lambda step, loss: progress.advance())
    finally:
        torch.set_num_threads(threads)
