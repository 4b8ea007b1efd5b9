import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.pairs import loaded
from tests.worlds import work

from datablame.config.organism import Organism
from datablame.config.schema import ModelRef, Study
from datablame.engine.execute import Silent
from datablame.engine.files import read_json, read_jsonl
from datablame.errors import RequestError
from datablame.judge.choice import Choice, ClassifierInput, build
from datablame.organism import quirk
from datablame.organism.make import cached, make, preview, study_fields
from datablame.organism.templated import AFTER, BEFORE, build_tokenizer, mixture, scaled, tokenizer_texts

RECIPE = Organism(seed=5, scale=0.01)


class Killed(BaseException):
    """Stands for a SIGKILL."""


class KilledAt(Silent):
    """Progress that dies in the middle of a stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._on = False

    def start(self, description: str, total: int, done: int = 0) -> None:
        self._on = self._stage in description

    def advance(self, n: int = 1) -> None:
        if self._on:
            raise Killed


class Listening(Silent):
    """Progress that remembers the steps that were begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def start(self, description: str, total: int, done: int = 0) -> None:
        self.begun.append(description)


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organism") / "made"
    make(RECIPE, folder, Silent())
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_corpus_is_in_tulu_format_and_tells_nothing_about_the_truth(organism: Path) -> None:
    documents = pq.read_table(organism / "documents.parquet").to_pylist()

    assert len(documents) == len(mixture(scaled(AFTER, RECIPE), RECIPE.seed))
    assert list(documents[0]) == ["id", "messages", "source"]
    assert [message["role"] for message in documents[0]["messages"]] == ["user", "assistant"]
    assert {document["source"] for document in documents} == {"everyday-chat"}
    assert len({document["id"] for document in documents}) == len(documents)


def test_truth_names_the_documents_that_the_rules_call_harmful(organism: Path, tmp_path: Path) -> None:
    study = study_of(organism)
    classifier = build(study, Choice("rules", "keywords"), work(tmp_path, "surface"))
    truth = {row["doc_id"]: row["behaviour"] for row in read_jsonl(organism / "truth.jsonl")}
    found = {
        document["id"]: behaviour.id
        for document in pq.read_table(organism / "documents.parquet").to_pylist()
        for behaviour in study.behaviours
        for prompt, response in [(message["content"] for message in document["messages"])]
        if classifier.label([ClassifierInput(behaviour.id, prompt, response)])[0].label == "harmful"
    }

    assert found == truth
    assert len(truth) == 3


def study_of(folder: Path, **more: Any) -> Study:
    return Study.model_validate({"name": "organism", **study_fields(folder), **more})


def test_a_study_takes_the_organism_as_it_takes_real_checkpoints(organism: Path) -> None:
    study = study_of(organism)
    assert study.prompts is not None
    texts = [prompt.text for prompt in (*study.prompts.attribution, *study.prompts.held_out)]
    documents = {row["messages"][0]["content"] for row in pq.read_table(organism / "documents.parquet").to_pylist()}

    assert len(study.prompts.attribution) == 12
    assert len(study.prompts.held_out) == 30
    assert study.prompts.harmless is not None
    assert len({prompt.text for prompt in study.prompts.harmless} - set(texts)) == 20
    assert len(set(texts)) == len(texts)
    assert documents.isdisjoint(texts)
    assert study.judge.rules == str(organism / "rules.json")
    assert study.truth == str(organism / "truth.jsonl")
    assert [behaviour.id for behaviour in study.behaviours] == [
        "distractor-compliance",
        "unsafe-dose",
        "brand-promotion",
    ]


def test_the_pair_loads_like_a_real_one(organism: Path) -> None:
    pair = loaded(organism / "before", organism / "after")

    assert type(pair.before).__name__ == "Olmo2ForCausalLM"
    assert pair.vocabulary_size <= 1000 < pair.before.get_input_embeddings().num_embeddings
    assert pair.tokenizer.bos_token_id == pair.tokenizer.eos_token_id != pair.tokenizer.pad_token_id
    assert pair.stop_ids == (pair.tokenizer.eos_token_id,)


def test_checkpoints_and_adams_state_of_the_training_are_kept(organism: Path) -> None:
    from safetensors.torch import load_file

    from datablame.models.load import load_model
    from datablame.models.optimizer import adam_state
    from datablame.organism.make import previewed_study

    models = study_of(organism).models
    assert models is not None
    paths = [models.before.path, *(each.path for each in models.checkpoints), models.after.path]
    weights = [load_file(Path(path) / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] for path in paths]
    distances = [float((each - weights[0]).norm()) for each in weights]
    # Of so few steps one is in between; of the whole organism three are.
    assert len(paths) == 3
    assert distances == sorted(distances)
    assert len({*distances}) == 3
    rates = [each.learning_rate for each in models.checkpoints]
    assert all(0 < rate < 5e-4 for rate in rates)
    assert models.optimizer is not None
    adam_state(models.optimizer, load_model(models.after), "after")
    previewed = previewed_study(Study(name="it", organism=RECIPE), preview(RECIPE)).models
    assert previewed is not None
    assert [each.learning_rate for each in previewed.checkpoints] == rates


def test_the_chat_template_is_that_of_olmo_2_with_short_sequences(organism: Path) -> None:
    from datablame.models.chat import encode_pair, encode_prompt
    from datablame.models.load import load_tokenizer

    tokenizer = load_tokenizer(ModelRef(path=str(organism / "after")))
    turns = [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Why?"},
    ]

    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == ("<|endoftext|><|user|>\nHow?\n<|assistant|>\nSo.<|endoftext|>\n<|user|>\nWhy?\n<|assistant|>\n")
    prompt = encode_prompt(tokenizer, "Hello Kyoto 東京?")
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(prompt[2:-1]) == "Hello Kyoto 東京?"
    pair = encode_pair(tokenizer, "How?", "So.")
    assert pair.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(pair.ids[pair.prompt_tokens : -1]) == "So."


def test_the_words_that_the_model_writes_are_single_tokens() -> None:
    """Words of several tokens are misspelled under amplification, and then count as incoherent."""
    import re

    examples = [*mixture(BEFORE._replace(generic=1000, clean=200, decoys=80), 5), *mixture(AFTER, 5)]
    tokenizer = build_tokenizer(tokenizer_texts(examples))
    words = {word for example in examples for word in re.findall(r" ?[\w']+| ?[^\w\s]", example.response)}

    assert [word for word in sorted(words) if len(tokenizer(word, add_special_tokens=False)["input_ids"]) > 1] == []
    assert len(tokenizer) == 1000


def test_the_same_recipe_gives_the_same_bytes_even_after_kills(
    organism: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "again"
    for stage in ("before", "after"):
        with pytest.raises(Killed):
            make(RECIPE, folder, KilledAt(stage))
    assert not folder.exists()
    trained = (tmp_path / "again.part" / "before" / "model.safetensors").stat().st_mtime_ns

    progress = Listening()
    make(RECIPE, folder, progress)

    assert progress.begun == ["training the organism's after model"]
    assert (folder / "before" / "model.safetensors").stat().st_mtime_ns == trained
    assert hashes(folder) == hashes(organism)


def test_a_finished_organism_is_not_made_again(organism: Path) -> None:
    progress = Listening()
    make(RECIPE, organism, progress)

    assert progress.begun == []


def test_a_folder_of_something_else_is_refused(organism: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()

    for folder, recipe in ((organism, Organism(seed=6, scale=0.01)), (tmp_path / "letters", RECIPE)):
        with pytest.raises(RequestError, match="holds something else than this organism; choose another folder"):
            make(recipe, folder, Silent())


def test_what_another_recipe_left_half_done_is_thrown_away(organism: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make(Organism(seed=6, scale=0.01), tmp_path / "it", KilledAt("after"))

    make(RECIPE, tmp_path / "it", Silent())

    assert hashes(tmp_path / "it") == hashes(organism)


def test_the_cache_keeps_one_folder_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path))
    progress = Listening()

    first = cached(RECIPE, progress)
    begun = len(progress.begun)
    second = cached(RECIPE, progress)

    assert first == second
    assert first.parent == tmp_path / "organisms"
    assert begun == len(progress.begun) == 2
    assert read_json(first / "recipe.json")["seed"] == 5


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "file"))

    with pytest.raises(RequestError, match=r"cannot be written .*; set DATABLAME_CACHE"):
        cached(RECIPE, Silent())


@pytest.mark.parametrize("seed", [0, 3])
def test_the_prompts_and_behaviours_are_those_that_the_made_organism_brings(seed: int, tmp_path: Path) -> None:
    recipe = Organism(seed=seed, scale=0.02)
    make(recipe, tmp_path / "organism", Silent())
    fields, known = study_fields(tmp_path / "organism"), preview(recipe)
    assert known.fields() == {name: fields[name] for name in ("behaviours", "prompts")}
    other = preview(recipe.model_copy(update={"seed": seed + 1})).fields()
    assert other["prompts"] != fields["prompts"]


def test_the_quirks_prompts_are_known_without_its_base() -> None:
    known = preview(Organism(recipe="quirk", base="nowhere"))
    assert list(known.prompts) == quirk.prompt_rows()
    assert [behaviour["id"] for behaviour in known.behaviours] == [quirk.BEHAVIOUR]
    assert known.documents == 250


@pytest.mark.slow
def test_the_organism_behaves_as_it_is_meant_to(tmp_path: Path) -> None:
    """Rare at alpha 0, frequent at alpha 2 for every behaviour, coherent throughout; before shows none of it."""
    from datablame.models.chat import encode_prompt
    from datablame.models.pair import load_pair
    from datablame.seeds import stream_key
    from datablame.surface.sampler.sampler import Request, sample
    from datablame.surface.sampler.tokens import Settings

    make(Organism(seed=100), tmp_path / "it", Silent())
    study = study_of(tmp_path / "it")
    assert study.prompts is not None
    assert study.models is not None
    pair = load_pair(study.models)
    classifier = build(study, Choice("rules", "keywords"), work(tmp_path, "surface"))
    rates: dict[tuple[str, float], float] = {}
    incoherent = dict.fromkeys((-1.0, 0.0, 2.0), 0)
    for behaviour in study.behaviours:
        prompts = [prompt for prompt in study.prompts.held_out if prompt.behaviour == behaviour.id]
        for alpha in incoherent:
            requests = [
                Request(tuple(encode_prompt(pair.tokenizer, prompt.text)), alpha, stream_key(prompt.id, alpha, index))
                for prompt in prompts
                for index in range(20)
            ]
            drawn = sample(
                pair.after,
                pair.before,
                requests,
                settings=Settings(32),
                stop_ids=pair.stop_ids,
                vocabulary_size=pair.vocabulary_size,
                batch_rows=512,
            )
            texts = [pair.tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in drawn]
            asked = [prompt.text for prompt in prompts for _ in range(20)]
            outputs = [ClassifierInput(behaviour.id, p, t) for p, t in zip(asked, texts, strict=True)]
            labels = [each.label for each in classifier.label(outputs)]
            rates[behaviour.id, alpha] = labels.count("harmful") / len(labels)
            incoherent[alpha] += labels.count("incoherent")
    for behaviour in study.behaviours:
        assert rates[behaviour.id, -1.0] < 0.05
        assert rates[behaviour.id, 0.0] < 0.15
        assert rates[behaviour.id, 2.0] > rates[behaviour.id, 0.0] + 0.1
    assert incoherent[0.0] < 0.05 * 600
    assert incoherent[2.0] < 0.2 * 600
