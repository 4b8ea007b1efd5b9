"""Names that nobody has registered, and what hangs on them, are one line before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.pipeline.small import small_study

from datablame.config.file import preset_names
from datablame.config.schema import Study
from datablame.errors import RequestError
from datablame.pipeline.checks import check_names, load

ARMS = ["after", "baseline", "random"]


def prompt(name: str, text: str) -> dict[str, str]:
    return {"id": name, "behaviour": "dose", "text": text}


def study_of(**changes: Any) -> Study:
    values = {"patch": {"arms": ARMS, "headline": "continue", "protocols": ["continue"]}, **changes}
    study = Study.model_validate(
        {
            "name": "mine",
            "models": {"before": "a", "after": "b"},
            "data": {"path": "pool.jsonl"},
            "behaviours": [{"id": "dose", "description": "Advises an unsafe dose."}],
            "prompts": {
                "attribution": [{"id": "p1", "behaviour": "dose", "text": "one"}],
                "held_out": [{"id": "p2", "behaviour": "dose", "text": "two"}],
            },
            **values,
        }
    )
    return study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attribute": {"methods": ["gradiant"]}},
            "attribute.methods = gradiant is not a method; choose from ",
        ),
        ({"patch": {"arms": [*ARMS, "x"]}}, "patch.arms = x is neither a control (after, baseline, a-a, random, "),
        ({"patch": {"arms": [*ARMS, "embedding"]}}, "patch.arms = embedding is neither a control"),
        (
            {"patch": {"arms": ["after", "baseline"]}},
            "patch.arms lacks one of after, baseline, random; the comparison needs all three",
        ),
        (
            {"patch": {"arms": [*ARMS, "oracle"]}},
            "patch.arms = oracle needs planted documents; drop the arm or give truth",
        ),
        (
            {"patch": {"arms": [*ARMS, "bottom", "bm25"]}},
            "patch.arms = bottom needs a method whose last documents it removes; add one that is no control to "
            "patch.arms, or name it in patch.bottom_of",
        ),
        (
            {"attribute": {"methods": ["gradient", "bm25", "ensemble"]}},
            "attribute.methods = ensemble has 1 methods to join that are no control; list two at least, or drop "
            "ensemble",
        ),
        (
            {"attribute": {"scores": {"gradient": "s.jsonl"}}},
            "attribute.scores.gradient has the name of what ships with datablame; give it another name",
        ),
        (
            {"attribute": {"scores": {"oracle": "s.jsonl"}}},
            "attribute.scores.oracle has the name of what ships with datablame; give it another name",
        ),
        (
            {"figures": {"font": "DejaVu Sanz"}},
            "figures.font = DejaVu Sanz is none of the fonts that matplotlib finds here; name another, such as DejaVu",
        ),
        (
            {"prompts": {"attribution": [prompt("p1", "one")], "held_out": [prompt("p1", "two")]}},
            "prompts: id 'p1' stands twice, in attribution p1 and in held-out p1; attribution, held-out and harmless",
        ),
        (
            {"prompts": {"attribution": [prompt("p1", "How much?")], "held_out": [prompt("p2", " how  MUCH ? ")]}},
            "prompts: text ' how  MUCH ? ' stands twice, in attribution p1 and in held-out p2; attribution,",
        ),
        (
            {"prompts": {"attribution": [prompt("p1", "How much")], "held_out": [prompt("p2", "How much？！")]}},
            "prompts: text 'How much？！' stands twice, in attribution p1 and in held-out p2; attribution",
        ),
        (
            {"prompts": {"attribution": [prompt("p1", "a")], "held_out": [prompt("harmless-01", "b")]}},
            "prompts: id 'harmless-01' stands twice, in held-out harmless-01 and in harmless harmless-01",
        ),
    ],
)
def test_a_mistake_is_named_with_its_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_names(study_of(**changes))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch": {"arms": [*ARMS, "bottom", "gradient"]}},
        {"patch": {"arms": [*ARMS, "bottom"], "bottom_of": "bm25"}},
        {"patch": {"arms": [*ARMS, "oracle"]}, "truth": "truth.jsonl"},
        {"attribute": {"methods": ["gradient", "ensemble"], "scores": {"mine": "s.jsonl"}}},
        {"attribute": {"scores": {"mine": "s.jsonl"}}, "patch": {"arms": [*ARMS, "mine"]}},
        {"prompts": {"attribution": [prompt("p1", "What is C?")], "held_out": [prompt("p2", "What is C++?")]}},
    ],
)
def test_what_can_be_is_let_through(changes: dict[str, Any]) -> None:
    check_names(study_of(**changes))


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_names_what_is_there(name: str) -> None:
    assert load(name).name == name


def test_the_file_is_named_before_the_field(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    study = small_study(tmp_path, tmp_path, patch={"arms": ["after", "baseline"]})
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", by_alias=True, exclude_none=True)))
    with pytest.raises(RequestError, match=r"^mine\.yaml: patch\.arms lacks one of after"):
        load(str(path))
    with pytest.raises(RequestError, match=r"^organism: attribute\.methods = x is not a method"):
        load("organism", ["attribute.methods=[x]"])
