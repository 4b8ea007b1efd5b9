"""Reading a study: a YAML file or a preset's name, overrides from the command line, errors in one line."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from datablame.config.schema import Study
from datablame.errors import RequestError

_PRESETS = Path(__file__).with_name("presets")
_SHOULD_BE: dict[str, str] = {
    "tuple_type": "a list; write [...], also around a single one",
    **dict.fromkeys(
        ("model_type", "dict_type", "mapping_type"), "a section of keys and values; give some, or remove it"
    ),
    "string_type": "a text; give one, in quotes if it reads as a number",
}
_WITH_DEFAULTS = [name for name, field in Study.model_fields.items() if isinstance(field.default, BaseModel)]
_PLAIN = {
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "null": "~|null|Null|NULL|",
    "merge": "<<",
}
"""What an unquoted scalar can be besides text, as in YAML 1.2: 1.1 reads 010 as 8, 1:30 as 90 and no as false."""


class _Loader(yaml.SafeLoader):
    """Sections, lists, texts and numbers; ComposerError where a section has a key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        None: [(f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})\\Z")) for name, pattern in _PLAIN.items()]
    }
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("str", "seq", "map", *_PLAIN)
    }

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                twice = f"{key.value} stands twice in one section, in lines {lines[key.value]} and {line}; keep one"
                raise yaml.composer.ComposerError(None, None, twice)
            lines[key.value] = line
        return node


def _parsed(text: str) -> Any:
    """The value of a YAML text; ValueError, which says why in one line, where it has none."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def preset_names() -> list[str]:
    """The studies that ship with datablame."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def preset_text(name: str) -> str:
    """The YAML of one preset; RequestError where there is none of that name."""
    if name not in preset_names():
        raise RequestError(f"STUDY = {name} is neither a file nor a preset{_nearest(name, preset_names())}")
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def load_study(source: str, overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file or preset with `a.b=value` overrides applied (values are YAML).

    `extends: PRESET` at the top of a file takes that preset's keys; its own go before them, sections key by key.
    Raises RequestError where the file is missing or not YAML, an override is malformed, or a field is wrong.
    """
    path = Path(source)
    is_preset = path.is_dir() and source in preset_names()  # a folder is no study, whatever its name
    if path.suffix in (".yaml", ".yml") or (path.exists() and not is_preset):
        where = path.name
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise RequestError(f"{source}: cannot be read, for it is not UTF-8; save it as UTF-8") from None
        except OSError as error:
            raise RequestError(f"{source}: cannot be read ({error}); give a YAML file or one of the presets") from None
    else:
        where, text = source, preset_text(source)
    values = _values(text, where)
    for override in overrides:
        _override(values, override)
    try:
        return Study.model_validate(values)
    except RecursionError:
        raise RequestError(f"{where}: a list holds itself (&name and *name); write it out") from None
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        also = f" (and {more} more)" if more else ""
        raise RequestError(f"{where}: {_sentence(first)}{also}") from None


def dump_study(study: Study) -> str:
    """The study with every default written out; the text is itself a study."""
    values = study.model_dump(mode="json", by_alias=True, exclude_none=True)
    values["execution"] = study.execution.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _values(text: str, where: str) -> dict[str, Any]:
    """The keys of a study, laid over those of the preset that it extends; lists are replaced, not joined."""
    try:
        values = _parsed(text)
    except ValueError as error:
        raise RequestError(f"{where}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{where}: holds {type(values).__name__}, not keys and values; see datablame presets")
    # A section all of whose keys are commented out is none.
    values = {key: value for key, value in values.items() if value is not None or key not in _WITH_DEFAULTS}
    if "extends" not in values:
        return values
    base = values.pop("extends")
    if base not in preset_names():
        raise RequestError(f"{where}: extends = {_short(base)} is not a preset{_nearest(str(base), preset_names())}")
    merged: dict[str, Any] = _merged(_values(preset_text(base), base), values)
    return merged


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not all(key.split(".")):
        raise RequestError(f"--set {override}: not of the form section.key=value")
    try:
        value = _parsed(text)
    except ValueError as error:
        raise RequestError(f"--set {override}: {text!r} is not a YAML value ({error}); quote it") from None
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RequestError(f"--set {override}: {section} is a value, not a section")
    values[last] = value


def _sentence(error: Any) -> str:
    location = [str(part) for part in error["loc"] if not str(part).startswith(("function-", "tuple[", "dict["))]
    field, kind = ".".join(location).removesuffix(".[key]"), error["type"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"{field} is not a key of a study{_nearest(location[-1], _fields_of(location[:-1]))}"
    if kind == "missing":
        return f"{field} is missing; add it"
    if kind == "string_unicode":
        inside = f" of {field}" if field else ""
        return f"the key {_short(error['input'])}{inside} has a character that no text has; remove it"
    if location[-1] == "[key]" and kind == "literal_error":
        return f"{field} is not a key there; choose {error['ctx']['expected']}"
    if kind in _SHOULD_BE:
        return f"{field} = {_short(error['input'])}: should be {_SHOULD_BE[kind]}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{field} = {_short(error['input'])}: {message}; change it"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_of(location: list[str]) -> list[str]:
    model: Any = Study
    for part in location:
        annotations = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        kinds = (annotations.get(part), *get_args(annotations.get(part)))
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{hint or ';'} known: {', '.join(known)}" if known else hint
