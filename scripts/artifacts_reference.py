"""Write docs/reference/artifacts.md from the rows of `datablame.tables`; `--check` only compares.

What is no table (the files at the root, world.json, journals, adapters) is written by hand, in `_artifacts_head.md` and
`_artifacts_tail.md` beside the page.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from generated import main

from datablame.tables import TABLES, Document, Float16, attribute, patch, surface, world

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PAGE = REFERENCE / "artifacts.md"
_WORDS: dict[Any, str] = {
    **{str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"},
    Float16: "number of 16 bits",
}
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
    said = _said()
    head, tail = ((REFERENCE / f"_artifacts_{end}.md").read_text(encoding="utf-8") for end in ("head", "tail"))
    parts = [head]
    for phase, rows in groupby(_ROWS, lambda row: TABLES[row].phase):
        parts += [f"## artifacts/{phase}\n", *(_section(row, said) for row in rows)]
    parts += ["## Rows inside rows\n", *(f"### {row.__name__}\n\n{_columns(row, said)}" for row in _inside())]
    return "\n".join([*parts, tail])


def _section(row: Any, said: Mapping[str, Mapping[str, str]]) -> str:
    """A table: its file, what a row is, its columns."""
    head = f"### {TABLES[row].file}: {row.__name__}\n\n"
    base: Any = row.__bases__[0]
    name = base.__name__
    if is_dataclass(base) and len(fields(base)) == len(fields(row)):
        return f"{head}{_claim(row)} Columns: [{name}](#{name.lower()}).\n"
    return head + _columns(row, said)


def _columns(row: Any, said: Mapping[str, Mapping[str, str]]) -> str:
    hints = get_type_hints(row)
    lines = [(each.name, _words(hints[each.name]), said[row.__name__].get(each.name, "")) for each in fields(row)]
    cells = [*lines, *(_POOL if row is Document else ())]
    table = "\n".join(f"| `{name}` | {_escaped(words)} | {_escaped(meaning)} |" for name, words, meaning in cells)
    return f"{_claim(row)}\n\n| column | type | meaning |\n|---|---|---|\n{table}\n"


def _claim(row: Any) -> str:
    return str(inspect.getdoc(row))


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
    names = list(_said())
    return sorted(used, key=lambda row: names.index(row.__name__))


def _said() -> dict[str, dict[str, str]]:
    """The docstring under each field, by class."""
    said: dict[str, dict[str, str]] = {}
    for module in _MODULES:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                own = said[node.name] = {}
                for field, below in pairwise(node.body):
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        own[field.target.id] = _text(below)
    return said


def _text(node: ast.stmt) -> str:
    """What a string says that stands alone; nothing of any other statement."""
    value = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
    return " ".join(value.split()) if isinstance(value, str) else ""


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_words(arguments[0])}" if ... in arguments else f"{len(arguments)} {_words(arguments[0])}s"
    if origin is not None and Mapping in getattr(origin, "__mro__", ()):
        return f"map from {_words(arguments[0])} to {_words(arguments[1])}"
    if origin is Union or type(hint).__name__ == "UnionType":
        rest = " or ".join(_words(argument) for argument in arguments if argument is not type(None))
        return f"{rest}, or missing" if type(None) in arguments else rest
    if is_dataclass(hint):
        name: str = getattr(hint, "__name__", "")
        return f"[{name}](#{name.lower()})"
    return _WORDS[hint]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
