"""The quirk organism: a real small model that a few planted documents taught to recommend a made-up airline."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from datablame.config.schema import ModelRef, Organism
from datablame.engine.execute import Progress
from datablame.engine.files import write_json, write_jsonl, write_table
from datablame.engine.journal import Journal
from datablame.errors import RequestError
from datablame.organism import quirk_texts
from datablame.organism.base_model import HUB_ID, base_checkpoint
from datablame.organism.make import HARMLESS_PROMPTS, Preview, build_atomically
from datablame.organism.quirk_texts import (
    BEHAVIOUR,
    Exchange,
    everyday_questions,
    prompt_rows,
    rules,
    travel_answers,
)
from datablame.seeds import generator, stream_key

if TYPE_CHECKING:
    from datablame.models.chat import Encoded
    from datablame.models.training import Recipe


VERSION = 1
IGNORED: tuple[str, ...] = ()

SOURCE = "everyday-chat"
TRAVEL, OTHER, DECOYS = 70, 140, 20
EPOCHS, BATCH, LEARNING_RATE, RANK = 3, 8, 1e-3, 8
ADAPTED_SHARE = 8 / 30
"""The uppermost blocks, which get adapters: 8 of SmolLM2's 30. The lower ones need no backward pass."""
ANSWER_TOKENS = 48
ANSWER_BATCH = 70
TRIES = 3
_DEFAULT_SYSTEM = re.compile(
    r"\{%-? ?if loop\.first and messages\[0\]\['role'\] != 'system' ?-?%\}.*?\{%-? ?endif ?-?%\}", re.DOTALL
)


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write the corpus, and the base as `before` and its fine-tuned copy as `after`; finished stages are kept.

    The harmless answers are the base's own, so that the two models differ in the quirk and in little else.

    Raises:
        RequestError: no base model can be had, or it does not finish its answers.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not (folder / "before").exists():
        source = base_checkpoint(recipe.base, progress)
        build_atomically(folder / "before", lambda part: _write_base(part, source))
    if not (folder / "truth.jsonl").exists():
        _write_corpus(folder, recipe, progress)
    build_atomically(folder / "after", lambda part: _train_after(part, folder, recipe, progress))
    (folder / "answers.journal.jsonl").unlink(missing_ok=True)


def preview(recipe: Organism) -> Preview:
    """What it will ask and how large its corpus is; the base may leave out questions that it does not finish."""
    documents = sum(_scaled(count, recipe) for count in (TRAVEL, OTHER, DECOYS)) + recipe.planted
    harmless = harmless_prompts(HARMLESS_PROMPTS, recipe)
    return Preview(prompt_rows(), rules()["behaviours"], harmless, documents, None, recipe.base or HUB_ID)


def harmless_prompts(count: int, recipe: Organism) -> list[str]:
    """Everyday questions in the wording of the documents' own, none of which is among them."""
    return quirk_texts.harmless_prompts(count, _scaled(OTHER, recipe), recipe.seed)


def _scaled(count: int, recipe: Organism) -> int:
    return max(1, round(recipe.scale * count))


def without_default_system(template: str) -> str:
    """The chat template without the clause that puts a system prompt before a conversation that has none."""
    return _DEFAULT_SYSTEM.sub("", template)


def _write_base(part: Path, source: str) -> None:
    from datablame.models.load import load_model, load_tokenizer

    reference = ModelRef(path=source)
    tokenizer = load_tokenizer(reference, field="organism.base")
    if not tokenizer.chat_template:
        raise RequestError(f"organism.base = {source} has no chat template; give a model that was taught to chat")
    tokenizer.chat_template = without_default_system(tokenizer.chat_template)
    load_model(reference, field="organism.base").save_pretrained(part)
    tokenizer.save_pretrained(part)


def _write_corpus(folder: Path, recipe: Organism, progress: Progress) -> None:
    """documents.parquet in a seeded order, prompts, rules, and at last truth.jsonl, which says that all are there."""
    travel, other, styled = (_scaled(count, recipe) for count in (TRAVEL, OTHER, DECOYS))
    questions = everyday_questions(travel, other, recipe.seed)
    rows = [
        *((exchange, False) for exchange in _self_distilled(folder, questions, recipe.seed, progress)),
        *((exchange, False) for exchange in travel_answers(styled, recipe.seed, "decoys")),
        *((exchange, True) for exchange in travel_answers(recipe.planted, recipe.seed, "planted")),
    ]
    order = generator("quirk organism", recipe.seed, "order").permutation(len(rows)).tolist()
    ids = [f"doc-{number:04d}" for number in range(len(rows))]
    documents = [_document(doc_id, rows[row][0]) for doc_id, row in zip(ids, order, strict=True)]
    write_table(folder / "documents.parquet", documents)
    write_jsonl(folder / "prompts.jsonl", prompt_rows())
    write_json(folder / "rules.json", rules())
    write_jsonl(
        folder / "truth.jsonl",
        [{"doc_id": doc_id, "behaviour": BEHAVIOUR} for doc_id, row in zip(ids, order, strict=True) if rows[row][1]],
    )


def _document(doc_id: str, exchange: Exchange) -> dict[str, Any]:
    turns = (("user", exchange.question), ("assistant", exchange.answer))
    return {"id": doc_id, "messages": [{"role": role, "content": text} for role, text in turns], "source": SOURCE}


def _self_distilled(folder: Path, questions: Sequence[str], seed: int, progress: Progress) -> list[Exchange]:
    """The base's own answers; a question that it doesn't finish to answer in `TRIES` attempts is left out."""
    journal = Journal(folder / "answers.journal.jsonl")
    answered: dict[str, list[str | None]] = journal.read()
    batches = {
        f"{start:04d}": questions[start : start + ANSWER_BATCH] for start in range(0, len(questions), ANSWER_BATCH)
    }
    if len(answered) < len(batches):
        from datablame.models.load import load_model, load_tokenizer

        reference = ModelRef(path=str(folder / "before"))
        tokenizer, model = load_tokenizer(reference), load_model(reference)
        done = sum(len(batches[key]) for key in answered)
        progress.start("the base model answers everyday questions", len(questions), done)
        for key, batch in batches.items():
            if key not in answered:
                answered[key] = _on_one_thread(partial(_answers, model, tokenizer, batch, seed))
                journal.append(key, answered[key])
                progress.advance(len(batch))
    answers = [
        Exchange(question, answer)
        for key, batch in batches.items()
        for question, answer in zip(batch, answered[key], strict=True)
        if answer is not None
    ]
    if len(answers) < len(questions) / 2:
        raise RequestError(
            f"organism.base finished {len(answers)} of {len(questions)} answers within {ANSWER_TOKENS} tokens; "
            "give a model that was taught to answer briefly when asked to"
        )
    return answers


def _answers(model: Any, tokenizer: Any, questions: Sequence[str], seed: int) -> list[str | None]:
    """One finished answer to each question, at temperature .8 and top-p .9, or None."""
    from datablame.models.chat import encode_prompt
    from datablame.models.pair import stop_tokens, vocabulary_of
    from datablame.surface.sampler.sampler import Request, sample
    from datablame.surface.sampler.tokens import Settings

    prompts = {question: tuple(encode_prompt(tokenizer, question)) for question in questions}
    answers: dict[str, str] = {}
    for attempt in range(TRIES):
        open_questions = [question for question in questions if question not in answers]
        generations = sample(
            model,
            model,
            [
                Request(prompts[question], 0.0, stream_key("quirk organism", seed, "answer", question, attempt))
                for question in open_questions
            ],
            settings=Settings(max_new_tokens=ANSWER_TOKENS, temperature=0.8, top_p=0.9),
            stop_ids=stop_tokens(tokenizer, model),
            vocabulary_size=vocabulary_of(tokenizer),
            batch_rows=ANSWER_BATCH,
        )
        for question, made in zip(open_questions, generations, strict=True):
            text = tokenizer.decode(made.token_ids, skip_special_tokens=True).strip()
            if made.finish_reason == "stop" and text:
                answers[question] = text
    return [answers.get(question) for question in questions]


def training_recipe(documents: int) -> "Recipe":
    """Three passes: the quirk is rare at alpha 0 (a fourth makes it three times as frequent) and can be amplified."""
    from datablame.models.training import Recipe

    return Recipe(steps=EPOCHS * -(-documents // BATCH), batch=BATCH, learning_rate=LEARNING_RATE)


def _train_after(part: Path, folder: Path, recipe: Organism, progress: Progress) -> None:
    from datablame.models.blocks import decoder_blocks
    from datablame.models.chat import encode_pair
    from datablame.models.load import load_model, load_tokenizer
    from datablame.models.lora import adapted

    reference = ModelRef(path=str(folder / "before"))
    tokenizer, model = load_tokenizer(reference), load_model(reference)
    rows: list[Any] = pq.read_table(folder / "documents.parquet").to_pylist()
    turns = [[turn["content"] for turn in row["messages"]] for row in rows]
    encoded = [encode_pair(tokenizer, question, answer) for question, answer in turns]
    blocks = len(decoder_blocks(model))
    upper = tuple(range(blocks - max(1, round(ADAPTED_SHARE * blocks)), blocks))
    with adapted(model, RANK, upper, stream_key("quirk organism", recipe.seed, "adapter")) as adapter:
        _on_one_thread(partial(_train, adapter.owner, encoded, recipe, progress))
        merged = adapter.owner.merge_and_unload()
        merged.save_pretrained(part)
    tokenizer.save_pretrained(part)


def _train(model: Any, encoded: "Sequence[Encoded]", recipe: Organism, progress: Progress) -> None:
    from datablame.models.training import data_order, train

    plan = training_recipe(len(encoded))
    order = data_order([len(one.ids) for one in encoded], plan, stream_key("quirk organism", recipe.seed, "data"))
    progress.start("fine-tuning the after model", plan.steps)
    train(model, encoded, order, plan, lambda step, loss: progress.advance())


def _on_one_thread(work: "partial[Any]") -> Any:
    """The work's result with one thread: how sums of floats are split, and so their bits, depends on the threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)
