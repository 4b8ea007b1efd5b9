"""What differs between two outputs: everything on the machine kind of the golden files, the structure elsewhere."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differences", "sentence_changes", "structural_differences"]

RELATIVE, ABSOLUTE = 1e-4, 1e-6
"""Of every float. Outputs are written with six digits, and scores are rounded to five before they rank."""
LOOSER: Mapping[str, float] = {"patch.training": 1e-3, "patch.checks": 1e-3, "final_results.checks": 1e-3}
"""Relative tolerances of what a training moves by more than rounding."""


def differences(golden: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for every value that differs, rows told by their keys; texts, ids and counts are to be equal."""
    lines = list(_keys("", golden, found))
    for name in sorted((golden.keys() & found.keys()) - {"sentences"}):
        relative = next((value for prefix, value in LOOSER.items() if name.startswith(prefix)), RELATIVE)
        lines += _values(name, _keyed(golden[name]), _keyed(found[name]), relative)
    return lines


def structural_differences(golden: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for every name that differs, and for every row that the study alone calls for."""
    lines = list(_keys("", golden, found))
    for name in sorted((golden.keys() & found.keys()) - {"sentences"}):
        ours, theirs = golden[name], found[name]
        if type(ours) is not type(theirs) and None not in (ours, theirs):
            lines.append(f"{name}: {type(ours).__name__} became {type(theirs).__name__}")
        elif _is_table(ours) and _is_table(theirs):
            lines += _sets(f"{name}: row", _fixed(ours), _fixed(theirs))
    return lines


def sentence_changes(golden: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Sentences that went (-) and that came (+)."""
    lines = []
    for name in sorted(golden["sentences"].keys() | found["sentences"].keys()):
        ours, theirs = (set(side["sentences"].get(name, [])) for side in (golden, found))
        lines += [f"- {name}: {text}" for text in sorted(ours - theirs)]
        lines += [f"+ {name}: {text}" for text in sorted(theirs - ours)]
    return lines


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and {"columns", "key", "fixed", "rows"} <= value.keys()


def _keyed(value: Any) -> Any:
    """A table's rows under the values of their keys, a column and its value a pair; nulls are left out."""
    if not _is_table(value):
        return value
    rows = [dict(zip(value["columns"], row, strict=True)) for row in value["rows"]]
    keyed = {
        "|".join(str(row[name]) for name in value["key"]): {k: v for k, v in row.items() if v is not None}
        for row in rows
    }
    assert len(keyed) == len(rows), f"{value['key']} do not tell the rows apart"
    return {**{name: item for name, item in value.items() if name not in ("columns", "fixed")}, "rows": keyed}


def _fixed(table: Mapping[str, Any]) -> set[str]:
    places = [table["columns"].index(name) for name in table["fixed"]]
    return {"|".join(str(row[place]) for place in places) for row in table["rows"]}


def _values(name: str, golden: Any, found: Any, relative: float) -> Iterator[str]:
    if isinstance(golden, Mapping) and isinstance(found, Mapping):
        yield from _keys(name, golden, found)
        for key in [key for key in golden if key in found]:
            yield from _values(f"{name}: {key}", golden[key], found[key], relative)
    elif isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        for number, (ours, theirs) in enumerate(zip(golden, found, strict=True)):
            yield from _values(f"{name}[{number}]", ours, theirs, relative)
    elif not _equal(golden, found, relative):
        yield f"{name}: {golden!r} became {found!r}"


def _equal(golden: Any, found: Any, relative: float) -> bool:
    """Floats within tolerance; a whole float equals an integer, as JSON may write one for the other."""
    if isinstance(golden, float) or isinstance(found, float):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (golden, found))
        return numbers and math.isclose(golden, found, rel_tol=relative, abs_tol=ABSOLUTE)
    return bool(golden == found) and isinstance(golden, bool) == isinstance(found, bool)


def _keys(name: str, golden: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    yield from _sets(name, set(golden), set(found))


def _sets(name: str, golden: set[str], found: set[str]) -> Iterator[str]:
    yield from (f"{name}: {text} is gone" for text in sorted(golden - found))
    yield from (f"{name}: {text} is new" for text in sorted(found - golden))
