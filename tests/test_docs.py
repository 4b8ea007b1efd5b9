import importlib
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from datablame.cli.app import app
from datablame.config.file import load_study, preset_names
from datablame.config.schema import Study

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "PROJECT_CONTEXT.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
ids = [str(page.relative_to(ROOT)) for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=ids)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The datablame commands of the console blocks, and those in backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [line.removeprefix("$ ") for block in blocks(page, "console") for line in block.splitlines()]
    for line in [*lines, *re.findall(r"`(datablame [^`]+)`", BLOCK.sub("", text))]:
        words = shlex.split(line, comments=True)
        if words[:1] == ["datablame"]:
            yield words[1:]


def readme_study() -> dict[str, Any]:
    (block,) = blocks(ROOT / "README.md", "yaml")
    values: dict[str, Any] = yaml.safe_load(block)
    return values


@every_page
def test_commands_and_options_on_a_page_exist(page: Path) -> None:
    for words in commands(page):
        command: Any = get_command(app)
        rest = list(words)
        while hasattr(command, "commands") and rest:
            name = rest.pop(0)
            assert name in command.commands, f"datablame {' '.join(words)}"
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, f"datablame {' '.join(words)}"


def test_every_number_that_the_readme_claims_stands_in_a_study_that_it_links() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it shows")[2].partition("\n## ")[0]
    claims = [claim for claim in section.split("\n- ") if "studies/" in claim]
    assert len(claims) == 4
    for claim in claims:
        linked = [(ROOT / path).read_text(encoding="utf-8") for path in re.findall(r"\((studies/[^)]+)\)", claim)]
        for number in re.findall(r"(?<![\d.])\d+(?:\.\d+)?(?= %| to \d+ %)|(?<=p = )\.\d+", claim):
            assert any(re.search(rf"(?<![1-9.]){re.escape(number)}(?!\d)", study) for study in linked), number


def test_the_study_in_the_readme_is_valid_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(readme_study()), encoding="utf-8")
    assert load_study(str(path)).name == "pet-food"


@every_page
def test_overrides_on_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(readme_study()), encoding="utf-8")
    for words in commands(page):
        values = [value for option, value in pairwise(words) if option == "--set"]
        source = words[1] if words[1:] and words[1] in preset_names() else str(path)
        load_study(source, values)


@every_page
def test_keys_of_a_study_on_a_page_exist(page: Path) -> None:
    known = set(keys("", Study))
    sections = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    if page.name == "final_results.md":
        return  # the keys of another file
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`", page.read_text(encoding="utf-8")):
        if name.split(".")[0] in sections and not name.endswith((".json", ".jsonl", ".md", ".parquet", ".eval")):
            assert name in known


def keys(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        yield key
        for nested in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(nested, type) and issubclass(nested, BaseModel):
                yield from keys(f"{key}.", nested)


@every_page
def test_targets_of_make_on_a_page_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|\$ )make ([a-z]+)", page.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@every_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert re.match(r"https?://", target) or (page.parent / target).exists(), target


@every_page
def test_source_files_on_a_page_exist(page: Path) -> None:
    source = ROOT / "src" / "datablame"
    for named in re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|yaml))`", page.read_text(encoding="utf-8")):
        assert any((folder / named).exists() for folder in (ROOT, source, source / "attribute")), named


def test_generated_pages_are_those_that_the_code_writes() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    listed = re.findall(r"^PAGES := (.+)$", makefile, re.MULTILINE)[0].split()
    assert {path.stem for path in (ROOT / "scripts").glob("*_reference.py")} < set(listed)
    for name in listed:
        script = importlib.import_module(name)
        assert script.PAGE.read_text(encoding="utf-8") == script.page(), f"{name}: run make docs"


def test_every_row_of_the_cases_names_a_test_that_exists_and_every_case_a_row() -> None:
    cases = ROOT / "tests" / "cases"
    text = (cases / "README.md").read_text(encoding="utf-8")
    head, _, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head] == ["kind", "input", "source", "what happens now", "test"]
    assert all(len(row) == 5 and all(cell.strip() for cell in row) for row in rows)
    kinds = [int(row[0].split()[0]) for row in rows]
    assert kinds == sorted(kinds)
    for row in rows:
        tests = re.findall(r"`(tests/[^`:]+\.py)::(\w+)`", row[4])
        assert tests, row[4]
        assert len(tests) == row[4].count("`") / 2, row[4]
        for path, name in tests:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row[1])}
    for case in cases.rglob("*"):
        if case.is_file() and case.name != "README.md" and not case.name.startswith("."):
            path = case.relative_to(cases)
            assert {path.as_posix(), f"{path.parts[0]}/"} & named, path


def test_decisions_are_numbered_without_gaps_and_short() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [page.name[:3] for page in pages] == [f"{number:03}" for number in range(1, len(pages) + 1)]
    for page in pages:
        lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line]
        assert len(lines) <= 15, page.name
        assert all(len(line) <= 120 for line in lines), page.name
