"""Whatever is done to a study, it is refused in one line with nothing written, or its world holds all that it says."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pipeline.small import ONE, small_study

from datablame.config.file import dump_study, load_study
from datablame.engine.execute import Silent
from datablame.engine.run_folder import locked
from datablame.errors import RequestError
from datablame.pipeline.checks import load
from datablame.pipeline.run import frozen
from datablame.world.world import load as load_world

USUAL = [0, 1, 2, 3, 5, 10, 39, 40, 0.25, 0.5, 1.0]
NUMBERS = [41, 1000, 2**31, 2**63, 2**70, 10**400, -1, -(2**70), -0.0, 1e-7, 1e-300, 1e300, 1.0000001]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
NAMES = [
    "walk",
    "d0",
    "a1",
    "h0",
    "harmless-01",
    "auto",
    "cpu",
    "full",
    "none",
    "swap",
    "drop-source",
    "before",
    "after",
]
NAMES += ["oracle", "ensemble", "bm25", "embedding", "llm-judge", "claude", "keywords", "rules", "bottom", "retrain"]
NAMES += ["truth.jsonl", "scores.jsonl", "people.jsonl", "rules.json", "pool.jsonl", "org/model", "cuda", "a title"]
TEXTS = ["", " ", "\t", "..", "../x", ".", "a\0b", "\ud800", "a\nb", "no", "010", "*", "x" * 300, "WALK", "[", "%s{0}"]
LISTS: list[Any] = [[0, 1], ["gradient"], {"mine": "scores.jsonl"}]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], {"a": 1}, [None], [1, 1], ["a", "a"]]
ROWS: list[Any] = [
    *(
        {"doc_id": name, "behaviour": "walk", "score": score, "label": "harmful"}
        for name, score in (("d1", 1), ("d2", 2))
    ),
    {"doc_id": "d1", "behaviour": "run", "score": float("inf"), "text": "x", "prompt": "?", "label": "harmful"},
    {"doc_id": 3, "behaviour": "walk", "score": "1"},
    {"doc_id": ["d1"], "behaviour": ["walk"], "score": None},
    *({}, [], 7, None, "d1"),
]
FILES = ("truth.jsonl", "scores.jsonl", "people.jsonl", "rules.json")
Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def folder(tiny_pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that a study names, in which one works."""
    home = tmp_path_factory.mktemp("home")
    study = small_study(home, tiny_pair_folder)
    (home / "study.yaml").write_text(json.dumps(study.model_dump(mode="json", by_alias=True)))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(home)
        patched.delenv("ANTHROPIC_API_KEY", raising=False)
        patched.setenv("DATABLAME_CACHE", str(home / "cache"))
        yield home


def paths(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every place in a study."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def mutate(draw: Any, study: dict[str, Any]) -> None:
    """Do one thing to a study: change, drop, double, move or add."""
    places = list(paths(study))
    if not places:
        return
    *sections, last = draw(st.sampled_from(places))
    inside: Any = study
    for section in sections:
        inside = inside[section]
    old, how = (
        inside[last],
        draw(st.sampled_from(["change", "change", "change", "drop", "drop", "double", "move", "add"])),
    )
    if how == "drop":
        del inside[last]
    elif how == "double" and isinstance(inside, list):
        inside.append(old)
    elif how == "move":
        *others, other = draw(st.sampled_from(places))
        there: Any = study
        for section in others:
            there = there[section] if isinstance(there, dict | list) else {}
        if isinstance(there, dict):
            there[other] = copy.deepcopy(old)
    elif how == "add" and isinstance(inside, dict):
        inside[draw(st.sampled_from(TEXTS))] = old
    else:
        alike = [None, *LISTS, *NAMES] if isinstance(old, str | None) else [*LISTS, *USUAL]
        inside[last] = draw(st.sampled_from(draw(st.sampled_from([*4 * [alike], NUMBERS, TEXTS, OTHERS]))))


@st.composite
def mutated(draw: Any, study: dict[str, Any]) -> str:
    """The YAML of a study to which one or two things were done, and sometimes one more to its text."""
    changed = json.loads(json.dumps(study))
    for _ in range(draw(st.integers(1, 2))):
        mutate(draw, changed)
    text = yaml.safe_dump(changed, sort_keys=False)
    if draw(st.integers(0, 9)) == 0:
        lines = text.splitlines()
        row = draw(st.integers(0, len(lines) - 1))
        lines[row : row + 1] = draw(st.sampled_from([[], 2 * [lines[row]], [lines[row][:-1]], [f"{lines[row]}: x"]]))
        text = "\n".join(lines)
    return text


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (stat.st_size if Path(name).is_file() else 0, stat.st_mtime_ns) for name, stat in stats.items()}


def hold(folder: Path, text: str) -> bool:
    """Hold one study as `run` does until its world is frozen; whether it was."""
    (folder / "study.yaml").write_text(text)
    before, outside = tree(folder), sorted(folder.parent.iterdir())
    refused = None
    try:
        study = load("study.yaml")
        root = Path("runs") / study.name
        with locked(root):
            world = frozen(study, root, execution=ONE, progress=Silent())
            (root / "study.yaml").write_text(dump_study(study))
    except RequestError as error:
        refused = str(error)
    if refused is not None:
        assert "\n" not in refused
        assert tree(folder) == before
        assert sorted(folder.parent.iterdir()) == outside
        return False
    made = {name: what for name, what in tree(folder).items() if not name.startswith(str(folder / "runs"))}
    assert load_world(root) == world
    assert load_study(str(root / "study.yaml")) == study
    json.dumps(study.model_dump(mode="json"), allow_nan=False)
    assert study.prompts is not None
    asked = {prompt.id for prompt in (*study.prompts.attribution, *study.prompts.held_out)}
    assert asked == {prompt.id for prompt in world.prompts if prompt.split != "harmless"}
    assert {prompt.behaviour for prompt in world.prompts if prompt.behaviour} == {each.id for each in world.behaviours}
    summary = world.pool.summary
    if world.data.documents is None:
        left_out = sum(summary.excluded.values()) + sum(rows.count for rows in summary.data.skipped)
        assert summary.documents + left_out == 40
    else:
        assert summary.documents + sum(summary.excluded.values()) <= world.data.documents
    for planted in (world.truth or {}).values():
        assert world.data.documents is not None or planted & world.pool.row_of.keys()
    shutil.rmtree(folder / "runs")
    assert made.keys() == before.keys()
    return True


def held(folder: Path, examples: int) -> list[bool]:
    study, outcomes = json.loads((folder / "study.yaml").read_text()), list[bool]()

    @settings(max_examples=examples)
    @given(text=mutated(study), rows=st.just(ROWS[:2]) | st.lists(st.sampled_from(ROWS), min_size=1, max_size=3))
    def each(text: str, rows: list[Any]) -> None:
        for name in FILES:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        outcomes.append(hold(folder, text))

    try:
        each()
    finally:
        (folder / "study.yaml").write_text(json.dumps(study))
    return outcomes


def test_sixty_mutated_studies(folder: Path) -> None:
    outcomes = held(folder, 60)
    assert {True, False} == set(outcomes)


@pytest.mark.slow
def test_a_thousand_mutated_studies(folder: Path) -> None:
    outcomes = held(folder, 1000)
    assert sum(outcomes) > 100
    assert len(outcomes) - sum(outcomes) > 100
