"""What a table's columns mean: the docstrings of its row, and its types in words."""

import ast
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin

from datablame.tables.store import Float16

_WORDS: dict[Any, str] = {
    **{str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"},
    Float16: "number of 16 bits",
}


def claim(row: type) -> str:
    """What a row is."""
    return str(inspect.getdoc(row))


def meaning(row: type, field: str) -> str:
    """The docstring under a field, of the row or of the row that it extends; empty without one."""
    return next((said[field] for base in row.__mro__ if field in (said := _said(base))), "")


def words(hint: Any, row: Callable[[type], str]) -> str:
    """A type in words, with `row`'s for a row inside the row."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        first = words(arguments[0], row)
        return f"list of {first}" if ... in arguments else f"{len(arguments)} {first}s"
    if origin is not None and Mapping in getattr(origin, "__mro__", ()):
        return f"map from {words(arguments[0], row)} to {words(arguments[1], row)}"
    if origin is Union or type(hint).__name__ == "UnionType":
        rest = " or ".join(words(argument, row) for argument in arguments if argument is not type(None))
        return f"{rest}, or missing" if type(None) in arguments else rest
    return row(hint) if is_dataclass(hint) and isinstance(hint, type) else _WORDS[hint]


@functools.cache
def _said(row: type) -> dict[str, str]:
    if not is_dataclass(row):
        return {}
    source = inspect.getsource(sys.modules[row.__module__])
    body = next(n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == row.__name__)
    return {
        field.target.id: text
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and (text := _text(below))
    }


def _text(node: ast.stmt) -> str:
    """What a string says that stands alone; nothing of any other statement."""
    value = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
    return " ".join(value.split()) if isinstance(value, str) else ""
