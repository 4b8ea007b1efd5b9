"""`before` and `after` of an example: a base model, and its LoRA fine-tune on documents, merged."""

from functools import partial
from pathlib import Path

from datablame.config.schema import Data, ModelRef
from datablame.engine.execute import Progress
from datablame.engine.files import build_atomically
from datablame.errors import RequestError
from datablame.organism.quirk import base_checkpoint, without_default_system
from datablame.seeds import stream_key

__all__ = ["BATCH", "LEARNING_RATE", "RANK", "upper_blocks", "write_models"]

BATCH, LEARNING_RATE, RANK = 8, 1e-3, 8
ADAPTED_SHARE = 8 / 30
"""The uppermost blocks get adapters: 8 of SmolLM2's 30. The lower ones need no backward pass."""
LONGEST_TOKENS = 256


def write_models(folder: Path, base: str | None, steps: int, seed: int, progress: Progress) -> None:
    """before/ and after/ in `folder`, trained on its documents.parquet; what is finished is kept.

    Sums of floats depend on the threads, so that one thread does the work: the same seed gives the same bytes.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if not (folder / "before").exists():
            source = base_checkpoint(base, progress)
            build_atomically(folder / "before", lambda part: _write_before(part, source))
        build_atomically(
            folder / "after", partial(_write_after, folder=folder, steps=steps, seed=seed, progress=progress)
        )
    finally:
        torch.set_num_threads(threads)


def upper_blocks(blocks: int) -> tuple[int, ...]:
    """The blocks that are trained."""
    return tuple(range(blocks - max(1, round(ADAPTED_SHARE * blocks)), blocks))


def _write_before(part: Path, source: str) -> None:
    from datablame.models.load import load_model, load_tokenizer

    reference = ModelRef(path=source)
    tokenizer = load_tokenizer(reference, field="--base")
    if not tokenizer.chat_template:
        raise RequestError(f"--base {source} has no chat template; give a model that was taught to chat")
    tokenizer.chat_template = without_default_system(tokenizer.chat_template)
    load_model(reference, field="--base").save_pretrained(part)
    tokenizer.save_pretrained(part)


def _write_after(part: Path, folder: Path, steps: int, seed: int, progress: Progress) -> None:
    from datablame.models.blocks import decoder_blocks
    from datablame.models.chat import encode_document
    from datablame.models.load import load_model, load_tokenizer
    from datablame.models.lora import adapted
    from datablame.models.training import Recipe, data_order, train
    from datablame.world.documents import Reader
    from datablame.world.sources import open_source

    reference = ModelRef(path=str(folder / "before"))
    tokenizer, model = load_tokenizer(reference), load_model(reference)
    data = Data(path=str(folder / "documents.parquet"))
    documents = Reader(open_source(data), data, seed)
    encoded = [encode_document(tokenizer, document, LONGEST_TOKENS) for document in documents]
    examples = [example for example in encoded if example is not None]
    recipe = Recipe(steps=steps, batch=BATCH, learning_rate=LEARNING_RATE)
    order = data_order([len(example.ids) for example in examples], recipe, stream_key("example", seed, "data"))
    blocks = upper_blocks(len(decoder_blocks(model)))
    progress.start("fine-tuning the after model", recipe.steps)
    with adapted(model, RANK, blocks, stream_key("example", seed, "adapter")) as adapter:
        train(adapter.owner, examples, order, recipe, lambda step, loss: progress.advance())
        adapter.owner.merge_and_unload().save_pretrained(part)
    tokenizer.save_pretrained(part)
