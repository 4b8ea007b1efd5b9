"""Write docs/reference/final_results.md from the JSON Schema of that file; `--check` only compares."""

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from generated import main

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "final_results.md"
HEAD = """# final_results.json

All results of a study in one file, for programs. `a.b` is a key inside a key, `a[]` an element of a list, `a.*` the
value of any key. What could not be computed is null, which the tables call none.

This page is written by `make docs` from the JSON Schema that ships as `report/final_results.schema.json`. The tests
hold every report against it.
"""
Schema = Mapping[str, Any]


def page() -> str:
    """The whole page."""
    schema = json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text(encoding="utf-8"))
    return "\n".join([HEAD, *(_section(name, each, schema["$defs"]) for name, each in schema["properties"].items())])


def _section(name: str, schema: Schema, known: Schema) -> str:
    said = schema.get("description", "")
    claim = f"{said[0].upper()}{said[1:]}.\n\n" if said else ""
    rows = "\n".join(f"| `{path}` | {words} | {meaning} |" for path, words, meaning in _rows(name, schema, known))
    return f"## {name}\n\n{claim}| key | type | meaning |\n|---|---|---|\n{rows}\n"


def _rows(path: str, schema: Schema, known: Schema, top: bool = True) -> Iterator[tuple[str, str, str]]:
    """A key and all below it."""
    plain = _resolved(schema, known)
    meaning = "" if top else schema.get("description", plain.get("description", ""))
    yield path, _words(schema, known).replace("|", "\\|"), meaning.replace("|", "\\|")
    inner = plain.get("items")
    if inner is not None and _resolved(inner, known).get("properties"):
        path, plain = f"{path}[]", _resolved(inner, known)
    properties = plain.get("properties", {})
    below = plain.get("additionalProperties")
    others = below if isinstance(below, Mapping) else {}
    named = {**properties, **{name: others for name in plain.get("required", ()) if name not in properties}}
    for name, each in (named or ({"*": others} if others else {})).items():
        yield from _rows(f"{path}.{name}", each, known, top=False)


def _resolved(schema: Schema, known: Schema) -> Schema:
    """What a reference names, and of a choice between null and something the something."""
    if "$ref" in schema:
        return _resolved(known[schema["$ref"].rpartition("/")[2]], known)
    if "oneOf" in schema:
        (rest,) = (each for each in schema["oneOf"] if each.get("type") != "null")
        return _resolved(rest, known)
    return schema


def _words(schema: Schema, known: Schema) -> str:
    names = {"string": "text", "number": "number", "integer": "integer", "boolean": "true or false", "null": "none"}
    plain = _resolved(schema, known)
    if "const" in plain:
        return f"`{plain['const']}`"
    if "enum" in plain:
        return " or ".join(f"`{value}`" for value in plain["enum"])
    kinds = plain.get("type", "anything")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if "oneOf" in schema or "oneOf" in known.get(schema.get("$ref", "").rpartition("/")[2], {}):
        kinds.append("null")
    words = [_list(plain, known) if kind == "array" else names.get(kind, kind) for kind in kinds]
    return " or ".join(words) + (", 0 to 1" if (plain.get("minimum"), plain.get("maximum")) == (0, 1) else "")


def _list(schema: Schema, known: Schema) -> str:
    return f"list of {_words(schema['items'], known)}" if "items" in schema else "list"


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
