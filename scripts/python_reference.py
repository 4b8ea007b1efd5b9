"""Write docs/reference/python.md from the docstrings of `datablame.api`; `--check` only compares."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from generated import main

from datablame import api, errors

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"
HEAD = """# The Python interface

`import datablame as db` offers `db.study`, `db.run`, `db.open` and `db.Run`
([how to use them](../how-to/from-python.md)). This page is written by `make docs` from the docstrings.
"""
_WIDTH = 100
_FUNCTIONS = (api.study, api.run, api.open)
_CLASSES = (api.Run, api.Figures, api.DocumentView, api.Verdict)


def page() -> str:
    """The whole page."""
    parts = [HEAD, *(_function(f"db.{each.__name__}", each, "##") for each in _FUNCTIONS)]
    for each in _CLASSES:
        parts += [f"## {each.__name__}\n\n{_said(each)}\n", *_members(each)]
    rows = "\n".join(f"| `{each.__name__}` | {each.exit_code} | {_said(each)} |" for each in _errors())
    return "\n".join([*parts, f"## Errors\n\n| in `datablame.errors` | exit code | |\n|---|---:|---|\n{rows}\n"])


def _members(cls: type) -> Iterator[str]:
    """What a class holds or gives as a table, then its methods, in the order of its source."""
    functions = [each for each in vars(cls).items() if inspect.isfunction(each[1]) and not each[0].startswith("_")]
    fields = () if functions else dataclasses.fields(cls)
    rows = [(each.name, each.type, "") for each in fields]
    for name, member in vars(cls).items():
        if isinstance(member, property | cached_property):
            get: Any = member.fget if isinstance(member, property) else member.func
            rows.append((name, inspect.signature(get).return_annotation, _said(get)))
    if rows:
        cells = (f"| `.{name}` | {_type(kind).replace(' | ', ' or ')} | {said} |" for name, kind, said in rows)
        yield "\n".join(["| | type | |\n|---|---|---|", *cells, ""])
    for name, function in functions:
        yield _function(f".{name}", function, "###")


def _function(name: str, function: Any, level: str) -> str:
    signature = inspect.signature(function)
    listed = [_type(str(each)) for each in signature.parameters.values() if each.name != "self"]
    if by_name := [each for each in signature.parameters.values() if each.kind is each.KEYWORD_ONLY]:
        listed.insert(len(listed) - len(by_name), "*")
    inside = ", ".join(listed)
    if len(inside) > _WIDTH:
        inside = "".join(f"\n    {each}," for each in listed) + "\n"
    code = f"{name.removeprefix('.')}({inside}) -> {_type(signature.return_annotation)}"
    return f"{level} {name}\n\n```text\n{code}\n```\n\n{_said(function)}\n"


def _said(thing: Any) -> str:
    """A docstring as Markdown: what stands under Args or Raises becomes a list."""
    parts = re.split(r"\n\n", inspect.getdoc(thing) or "")
    return "\n\n".join(
        _listed(part) if re.match(r"(Args|Raises):\n", part) else " ".join(part.split()) for part in parts
    )


def _listed(part: str) -> str:
    head, _, lines = part.partition("\n")
    items = [" ".join(item.split()) for item in re.split(r"\n    (?=\S)", f"\n{lines}")[1:]]
    rows = (re.sub(r"^([\w.]+): ", r"- `\1`: ", item) for item in items)
    return "\n".join([f"{head.removesuffix(':')}:\n", *rows])


def _type(hint: Any) -> str:
    """Types as they are imported, without their modules."""
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    return re.sub(r"'([A-Z]\w*)'", r"\1", re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text))


def _errors() -> list[Any]:
    kinds = [
        each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.DatablameError)
    ]
    return sorted(kinds, key=lambda each: each.exit_code)


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
