"""Write docs/reference/config.md from the docstrings of the study's fields; `--check` only compares."""

import sys
import types
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from generated import main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from datablame.config.schema import Study

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "config.md"
HEAD = """# The study, key by key

A study is a YAML file with these keys. Unknown keys are refused. `datablame presets` lists the studies that ship;
`--set section.key=value` overrides a key from the command line, where the value is YAML. Keys that only some studies
need have the default *none*.

This page is written by `make docs` from `src/datablame/config`.
"""


def page() -> str:
    """The whole page; a model that stands under several keys is one section."""
    keys: dict[type[BaseModel], list[str]] = {}
    for key, model in _sections("", Study):
        keys.setdefault(model, []).append(key)
    return "\n".join([HEAD, *(_section(", ".join(names), model) for model, names in keys.items())]) + "\n"


def _sections(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and every model nested in it, depth first, with the key under which each stands."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for nested in _models(field.annotation):
            repeated = "[]" if get_origin(field.annotation) is tuple else ""
            yield from _sections(".".join(filter(None, [prefix, field.alias or name])) + repeated, nested)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _section(name: str, model: type[BaseModel]) -> str:
    head = f"\n## {name or 'study'}\n\n{model.__doc__}\n\n| key | type | default | meaning |\n|---|---|---|---|"
    return "\n".join([head, *(_row(key, field) for key, field in model.model_fields.items())])


def _row(name: str, field: FieldInfo) -> str:
    cells = [f"`{field.alias or name}`", _type(field), _default(field), " ".join((field.description or "").split())]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: FieldInfo) -> str:
    return ", ".join(filter(None, [_words(field.annotation), _bounds(field.metadata)]))


def _bounds(metadata: Iterable[Any]) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return " and ".join(
        f"{word} {getattr(bound, name)}" for bound in metadata for name, word in words.items() if hasattr(bound, name)
    )


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join(filter(None, [_words(arguments[0]), _annotated_bounds(arguments[1:])]))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_words(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments if argument is not type(None))
    if origin is not None:
        return f"map from {_words(arguments[0])} to {_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "true or false", date: "date"}
    return names[annotation]


def _annotated_bounds(metadata: Iterable[Any]) -> str:
    """The bounds of `Annotated[int, Field(gt=0)]`, where they hide inside a FieldInfo."""
    return _bounds(bound for info in metadata for bound in getattr(info, "metadata", [info]))


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, BaseModel):
        return "none" if value is None else "as below"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != "" else "empty"


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
