"""Write docs/reference/cli.md from the commands of `datablame`; `--check` only compares."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generated import main
from typer.main import get_command

from datablame.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# The command line

Progress and logs go to stderr, results to stdout. This page is written by `make docs` from the commands' `--help`.

| exit code | means |
|---:|---|
| 0 | done; FAILURE and INCONCLUSIVE are results too |
| 1 | a phase failed, or the verdict is INVALID |
| 2 | a mistake in the request: one line with field, value and remedy; nothing is written |
| 3 | the budget is used up; resume with a larger one, nothing is paid twice |
| 130 | interrupted; resume goes on |
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in _commands("datablame", get_command(app)))])


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Commands by their full names, in the order of `--help`; of a group what is in it."""
    inside = getattr(command, "commands", None)
    if inside is None:
        yield name, command
        return
    for part, one in inside.items():
        yield from _commands(f"{name} {part}", one)


def _section(name: str, command: Any) -> str:
    said = "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", command.help.strip()))
    usage = " ".join([name, *(_named(each) for each in command.params if not _is_option(each)), "[OPTIONS]"])
    rows = [(f"`{_named(each)}`", _taken(each), _default(each), each.help) for each in command.params]
    table = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    return (
        f"## {name}\n\n{said}\n\n```text\n{usage}\n```\n\n| | takes | default | meaning |\n|---|---|---|---|\n{table}\n"
    )


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _named(parameter: Any) -> str:
    """As one writes it, an argument that may be left out in brackets."""
    if _is_option(parameter):
        return str(parameter.opts[0])
    name: str = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _taken(parameter: Any) -> str:
    """What follows an option; nothing after a flag."""
    return "" if not _is_option(parameter) or parameter.is_flag else parameter.metavar or "a value"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False) else f"`{value}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
