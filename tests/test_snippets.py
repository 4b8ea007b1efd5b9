"""Every command and snippet of README and documentation is run, or stands here with the reason why it is not."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tests import pet_food
from tests.shell import Answer, asked
from typer.main import get_command

from datablame.cli.app import app
from datablame.config.file import load_study
from datablame.config.schema import Study

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^\s*```", re.MULTILINE)

PACKAGES = "it downloads packages; tests/examples runs the script on stand-ins"
CLUSTER = "it needs a Ray cluster; tests/engine runs one"
PLUGIN = "the example has to be installed; tests/attribute/test_plugin.py does"
HUB = "checkpoints and data are at the hub; tests/test_presets_run.py runs the preset on stand-ins"
MINUTES = "it takes minutes; the same command on the small study is run here"
BOARD = "an organism takes minutes; tests/leaderboard runs small ones"
KEY = "it asks Claude, for money; tests/judge asks a server of its own"
NOT_RUN = {
    "datablame run study.yaml --executor ray": CLUSTER,
    "datablame run study.yaml --resume --devices 0,2": "it needs cards; tests/pipeline/test_cards.py names some",
    "datablame run study.yaml --set 'patch.arms=[after, baseline, random, gradient, longest]'": PLUGIN,
    "datablame run olmo2-1b --out": HUB,
    "datablame run olmo2-1b --max-cost": KEY,
    "datablame run olmo2-1b --resume --max-cost": KEY,
    "datablame run organism": MINUTES,
    "datablame run runs/": PACKAGES,
    "datablame leaderboard": BOARD,
    "datablame label": "it waits for a person; tests/view has one",
    "datablame view": "it serves until Ctrl-C; tests/view opens its pages",
    "datablame export runs/pet-food --to hub": "it uploads; tests/export asks a server of its own",
    "hf auth login": "there is no token to give",
    "inspect view": "it serves until Ctrl-C; tests/export reads the logs with Inspect",
    "python examples/": PACKAGES,
    "python benchmarks/keyword_calibration.py": "it needs pyrit; tests/test_keyword_calibration.py holds its table",
    "bash benchmarks/card.sh": "it takes minutes of a card; tests/test_card.py runs it on a CPU",
    "pip install": "tests install nothing",
    "export ANTHROPIC_API_KEY=...": "there is no key to give",
}
"""Commands by how they begin: those of datablame are parsed, and what others run is there."""
NOT_EXECUTED = {
    "docs/how-to/add-a-method.md": PLUGIN,
    "docs/how-to/add-an-arm.md": PLUGIN,
    "docs/how-to/colab-t4.md": "google.colab is on Colab only",
    "docs/how-to/export.md": "it needs a run's weights; tests/patch/test_worker.py loads an adapter with peft",
}
"""Pages whose Python is compiled only."""


class Block(NamedTuple):
    """A fenced block; one with a title is the file of that name."""

    page: str
    language: str
    title: str
    text: str


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


BLOCKS = [
    Block(page.relative_to(ROOT).as_posix(), *found)
    for page in PAGES
    for found in BLOCK.findall(page.read_text(encoding="utf-8"))
]
FILES = [block for block in BLOCKS if block.title]
CONSOLE = [line for block in of("console") for line in block.text.splitlines() if line.startswith("$ ")]
COMMANDS = list(dict.fromkeys(shlex.join(shlex.split(line[2:], comments=True)) for line in CONSOLE))
LISTED = [command for command in COMMANDS if command.startswith(tuple(NOT_RUN))]
RUN = [command for command in COMMANDS if command not in LISTED and command.startswith("datablame ")]
PYTHON = list(dict.fromkeys(block.page for block in of("python")))
(README_STUDY,) = (yaml.safe_load(block.text) for block in of("yaml") if block.page == "README.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would be: the study of the README, made small, and every file that a page shows."""
    made = tmp_path_factory.mktemp("snippets")
    pet_food.write(made, README_STUDY)
    for block in FILES:
        if block.title != "study.yaml":
            (made / block.title).write_text(block.text, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Answer]:
    """What the commands say, given one after the other in the order of the pages."""
    told = asked([command.removeprefix("datablame ") for command in RUN], folder)
    return {f"datablame {command}": answer for command, answer in told.items()}


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_what_it_should(command: str, answers: dict[str, Answer]) -> None:
    assert answers[command].returncode == 0, answers[command].stderr[-2000:]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUN])
def test_a_command_that_is_not_run_is_one_that_could_be(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "datablame":
        leaf: Any = get_command(app)
        while hasattr(leaf, "commands"):
            leaf = leaf.commands[words.pop(0)]
        leaf.make_context(leaf.name, words)
    elif program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)
    else:
        assert command in LISTED
        if program in ("python", "bash"):
            assert (ROOT / words[0]).is_file()


def test_every_reason_not_to_run_something_is_needed() -> None:
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in LISTED)] == []
    assert set(NOT_EXECUTED) <= set(PYTHON)


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: str, folder: Path, answers: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": page}
    for block in of("python"):
        if block.page == page:
            code = compile(block.text, page, "exec")
            if page not in NOT_EXECUTED:
                exec(code, namespace)


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: f"{block.page}-{block.text[:20]!r}")
def test_keys_that_a_page_shows_are_a_study_or_fit_into_one(block: Block, tmp_path: Path) -> None:
    if block.title:
        (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        load_study(str(tmp_path / block.title))
    else:
        Study.model_validate(README_STUDY | yaml.safe_load(block.text))


def test_other_blocks_can_be_read_as_what_they_say_they_are() -> None:
    for block in BLOCKS:
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            lines = [block.text] if block.title.endswith(".json") else block.text.splitlines()
            assert all(json.loads(line) for line in lines)
        elif block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def test_no_block_is_of_a_kind_that_nothing_covers() -> None:
    assert {block.language for block in BLOCKS} <= {"console", "python", "yaml", "toml", "json", "bash", "text"}
    assert {block.page for block in of("text")} <= {"docs/reference/cli.md", "docs/reference/python.md"}
    assert all(block.text.startswith("$ ") for block in of("console"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(FENCE.findall(text)) == 2 * len(BLOCK.findall(text)), f"{page}: a block is indented or has no end"
