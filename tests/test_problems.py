"""What is refused has a sentence, and the sentence gets what it names: a gap would show in front of a user only."""

import ast
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
import yaml

SOURCE = Path(__file__).parents[1] / "src/datablame"
SENTENCES = {path.parent.name: yaml.safe_load(path.read_text()) for path in sorted(SOURCE.glob("*/problems.yaml"))}
BY_PACKAGE = {"refusal", "refused", "_refused"}
"""Functions of a package that take a name of its own problems.yaml."""
GIVEN = {"at", "field"}
"""What a checkpoint says of itself in each of its sentences."""


def _calls(package: str) -> Iterator[tuple[str, str, set[str] | None]]:
    """Where a sentence is asked for by a literal name, the name, and what it gets; None where that is spread."""
    for path in sorted((SOURCE / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
                # A rule: (whether it holds,) its name, what its sentence gets; the study is handed to all.
                *_, last, values = node.value.elts
                if isinstance(last, ast.Constant) and isinstance(values, ast.Dict):
                    given = {str(key.value) for key in values.keys if isinstance(key, ast.Constant)}
                    yield f"{path.name}:{node.lineno}", str(last.value), given | {"study"}
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "id", getattr(node.func, "attr", None))
            literals = [each.value for each in node.args if isinstance(each, ast.Constant)]
            name = literals[1:] if called == "problem" else literals[:1] if called in BY_PACKAGE else []
            if name and isinstance(name[0], str):
                names = {keyword.arg for keyword in node.keywords}
                yield f"{path.name}:{node.lineno}", name[0], None if None in names else {*map(str, names)}


@pytest.mark.parametrize("package", SENTENCES)
def test_every_refusal_has_a_sentence_that_gets_what_it_names(package: str) -> None:
    calls, sentences = list(_calls(package)), SENTENCES[package]
    for where, name, given in calls:
        assert name in sentences, f"{where}: {name}"
        fields = {
            field.partition(".")[0].partition("[")[0] for _, field, *_ in Formatter().parse(sentences[name]) if field
        }
        assert given is None or fields <= given | GIVEN, f"{where}: {name} lacks {fields - given}"


@pytest.mark.parametrize("package", SENTENCES)
def test_no_sentence_is_left_over(package: str) -> None:
    code = "".join(path.read_text() for path in (SOURCE / package).rglob("*.py"))
    unused = [name for name in SENTENCES[package] if isinstance(name, str) and f'"{name}"' not in code]
    assert not unused
