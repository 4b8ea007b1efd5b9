"""A stranger's package adds methods and evidence by its entry points; one that is broken is named, and no more."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.attribute.conftest import CONTROLS, Make
from tests.attribute.test_run import scores_of

from datablame.tables import Flag, MethodInfo, look_of

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/plugin"
SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path

from tests.worlds import frozen, ran

from datablame.attribute.phase import ATTRIBUTE
from datablame.attribute.registry import METHODS, PROVIDERS, described
from datablame.engine.execute import Execution
from datablame.config.schema import Study
from datablame.patch.registry import ARMS

if __name__ == "__main__":
    world = frozen(Study.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
    methods = tuple(json.loads(sys.argv[3]))
    attribute = world.study.attribute.model_copy(update={"methods": methods})
    ran(ATTRIBUTE, replace(world, study=world.study.model_copy(update={"attribute": attribute})), Execution(2, 1))
    problems = sorted({*METHODS.problems, *PROVIDERS.problems, *ARMS.problems})
    print(json.dumps([problems, [row["name"] for row in described()], list(ARMS.all())]))
"""


def install(target: Path, name: str, modules: Mapping[str, str], points: Mapping[str, Mapping[str, str]]) -> None:
    """What pip leaves of a package: its modules, its name, its entry points."""
    for module, text in modules.items():
        file = target / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    folder = target / f"{name.replace('-', '_')}-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in own.items()) for group, own in points.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def install_example(target: Path) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(EXAMPLE / "src", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    install(target, project["name"], {}, project["entry-points"])


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """The example beside two packages that cannot be used."""
    target = tmp_path / "packages"
    target.mkdir()
    install_example(target)
    install(
        target, "broken-tda", {"broken_tda.py": "import no_such_module\n"}, {"datablame.methods": {"x": "broken_tda"}}
    )
    greedy = """
from datablame.attribute.registry import method

@method("greedy-extra", label="x", description="x.")
def extra(evidence):
    ...

@method("gradient", label="mine", description="mine.")
def gradient(evidence):
    ...
"""
    install(target, "greedy-tda", {"greedy_tda.py": greedy}, {"datablame.methods": {"gradient": "greedy_tda"}})
    return target


def test_a_strangers_package_runs_in_a_study_and_broken_ones_are_named(make: Make, packages: Path) -> None:
    made = make(attribute={"top_k": 3, "queries": 2, "duplicate_threshold": 1.0}, **CONTROLS)
    methods = ["bm25", "bm25-max", "repetition", "gradient"]
    script = packages.parent / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    study = made.world.study.model_dump_json(by_alias=True)
    paths = [str(packages), str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(script), study, str(made.world.root), json.dumps(methods)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    problems, names, arms = json.loads(done.stdout.splitlines()[-1])
    assert [problem.partition(" (")[0] for problem in problems] == [
        "the method gradient of the package greedy-tda cannot be used",
        "the method x of the package broken-tda cannot be used",
    ]
    assert "gradient is registered already" in problems[0]
    assert "no_such_module" in problems[1]
    assert {*methods} <= {*names}
    assert "greedy-extra" not in names
    assert "longest" in arms

    info = {row.name: row for row in made.tables.rows(MethodInfo)}
    assert list(info) == methods
    assert info["gradient"].label == "gradient similarity"
    assert info["repetition"].look == look_of("repetition")
    assert (info["bm25-max"].cost, info["repetition"].cost) == ("words", "words")
    assert [finding.name for finding in info["repetition"].findings] == ["mean type-token ratio"]
    assert {row.method for row in made.tables.rows(Flag)} == set(methods)
    pool = made.world.pool
    ids = [answer.ids for answer in pool.encoded(range(len(pool)))]  # type: ignore[union-attr]
    expected = {doc_id: 1 - len(set(own)) / len(own) for doc_id, own in zip(pool.ids, ids, strict=True)}
    assert scores_of(made, "repetition") == pytest.approx(expected, abs=1e-4)
    mean, best = scores_of(made, "bm25"), scores_of(made, "bm25-max")
    assert all(best[doc_id] >= mean[doc_id] for doc_id in best)


@pytest.mark.parametrize(
    ("file", "page"), [("bm25_max", "add-a-method"), ("repetition", "add-a-method"), ("longest", "add-an-arm")]
)
def test_the_how_to_page_shows_the_code_that_is_tested(file: str, page: str) -> None:
    code = (EXAMPLE / f"src/datablame_example/{file}.py").read_text(encoding="utf-8")
    assert code in (ROOT / f"docs/how-to/{page}.md").read_text(encoding="utf-8")


def test_a_method_on_existing_evidence_is_at_most_25_lines() -> None:
    assert len((EXAMPLE / "src/datablame_example/bm25_max.py").read_text(encoding="utf-8").splitlines()) <= 25
