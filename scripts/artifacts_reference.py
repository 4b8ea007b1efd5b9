"""Write docs/reference/artifacts.md from the rows of `datablame.tables`; `--check` only compares.

What is no table (the files at the root, world.json, journals, adapters) is written by hand, in `_artifacts_head.md` and
`_artifacts_tail.md` beside the page.
"""

import inspect
import sys
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_type_hints

from generated import main

from datablame.tables import TABLES, Document, attribute, patch, surface, world
from datablame.tables.meanings import claim, meaning, words

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PAGE = REFERENCE / "artifacts.md"
_MODULES = (world, surface, attribute, patch)
_ROWS = sorted(TABLES, key=lambda row: ("world", "scan", "surface", "attribute", "patch").index(TABLES[row].phase))
_POOL = (
    ("cluster", "integer", "Duplicates share a cluster; numbered by first appearance."),
    ("characters", "integer", "Length of the full text."),
    ("tokens", "integer", "With the prompt; of a pair the longer answer's."),
    ("prompt_tokens", "integer", "How many of the token ids are the prompt's, which is not in the loss."),
    ("token_ids", "list of integer", "Prompt and response, cut to `attribute.max_tokens`."),
    ("rejected_ids", "list of integer, or missing", "The same with the rejected answer; of pairs only."),
    ("rejected_prompt_tokens", "integer, or missing", "How many of those are the prompt's."),
)
"""Columns that only `world.pool` reads."""


def page() -> str:
    """The whole page."""
    head, tail = ((REFERENCE / f"_artifacts_{end}.md").read_text(encoding="utf-8") for end in ("head", "tail"))
    parts = [head]
    for phase, rows in groupby(_ROWS, lambda row: TABLES[row].phase):
        parts += [f"## artifacts/{phase}\n", *(_section(row) for row in rows)]
    parts += ["## Rows inside rows\n", *(f"### {row.__name__}\n\n{_columns(row)}" for row in _inside())]
    return "\n".join([*parts, tail])


def _section(row: Any) -> str:
    """A table: its file, what a row is, its columns."""
    head = f"### {TABLES[row].file}: {row.__name__}\n\n"
    base: Any = row.__bases__[0]
    name = base.__name__
    if is_dataclass(base) and len(fields(base)) == len(fields(row)):
        return f"{head}{claim(row)} Columns: [{name}](#{name.lower()}).\n"
    return head + _columns(row)


def _columns(row: Any) -> str:
    hints = get_type_hints(row)
    lines = [(each.name, _words(hints[each.name]), meaning(row, each.name)) for each in fields(row)]
    cells = [*lines, *(_POOL if row is Document else ())]
    table = "\n".join(f"| `{name}` | {_escaped(kind)} | {_escaped(text)} |" for name, kind, text in cells)
    return f"{claim(row)}\n\n| column | type | meaning |\n|---|---|---|\n{table}\n"


def _inside() -> list[Any]:
    """Rows that stand in other rows, or from which tables take their columns, in the order of the module."""
    used: dict[Any, None] = {}

    def visit(hint: Any) -> None:
        if is_dataclass(hint) and hint not in used:
            if hint not in TABLES:
                used[hint] = None
            for inner in get_type_hints(hint).values():
                visit(inner)
        for argument in get_args(hint):
            visit(argument)

    for row in _ROWS:
        visit(row)
        for base in row.__bases__:
            visit(base)
    lines = {row: (_MODULES.index(sys.modules[row.__module__]), inspect.getsourcelines(row)[1]) for row in used}
    return sorted(used, key=lines.__getitem__)


def _words(hint: Any) -> str:
    return words(hint, lambda row: f"[{row.__name__}](#{row.__name__.lower()})")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
