"""What plugs in: ours by module, others' by entry point, and one that is broken takes nothing down with it."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from datablame.engine.registry import Registry
from datablame.errors import RequestError


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    """Two of our own, and three strangers' modules: one works, one cannot be imported, one takes a name of ours."""
    made: Registry[int] = Registry("method", "attribute.methods", "ours", "datablame.methods")
    modules = {
        "ours/__init__.py": "",
        "ours/a.py": "import registry_of_the_test as r\nr.made.add('gradient', 1)\n",
        "ours/b.py": "import registry_of_the_test as r\nr.made.add('bm25', 2)\n",
        "works.py": "import registry_of_the_test as r\nr.made.add('mine', 3)\n",
        "broken.py": "import a_library\nthat is missing",
        "taken.py": "import registry_of_the_test as r\nr.made.add('half', 4)\nr.made.add('bm25', 5)\n",
        "registry_of_the_test.py": "made = None\n",
    }
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py").replace("/", "."), raising=False)
    for name in ("ours", "ours.a", "ours.b"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    import registry_of_the_test  # type: ignore[import-not-found]

    registry_of_the_test.made = made
    points = [metadata.EntryPoint(name, name, "datablame.methods") for name in ("taken", "broken", "works")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "datablame.methods" else [])
    return made


def test_ours_come_before_others_and_a_broken_one_takes_nothing_down(registry: Registry[int]) -> None:
    assert dict(registry.all()) == {"gradient": 1, "bm25": 2, "mine": 3}
    broken, taken = registry.problems
    assert broken.startswith("the method broken of the package an unknown package cannot be used (")
    assert taken == (
        "the method taken of the package an unknown package cannot be used (the method bm25 is registered already)"
    )


def test_an_unknown_name_gets_the_nearest_one_all_names_and_what_is_broken(registry: Registry[int]) -> None:
    assert registry.named("mine") == 3
    with pytest.raises(RequestError) as error:
        registry.named("gradiant")
    assert str(error.value).startswith(
        "attribute.methods = gradiant is not a method; did you mean gradient? Known: gradient, bm25, mine. the method "
    )
    assert "\n" not in str(error.value)
