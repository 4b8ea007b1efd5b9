"""Every mistake in a study is one line that names the file, the field, the value and the remedy."""

from pathlib import Path

import pytest
import yaml

from datablame.config.file import dump_study, load_study, preset_names
from datablame.config.schema import Study
from datablame.errors import RequestError

_STUDY = {
    "name": "mine",
    "models": {"before": "a", "after": "b"},
    "data": {"path": "pool.jsonl"},
    "behaviours": [{"id": "dose", "description": "Advises an unsafe dose."}],
    "prompts": {
        "attribution": [{"id": "p1", "behaviour": "dose", "text": "one"}],
        "held_out": [{"id": "p2", "behaviour": "dose", "text": "two"}],
    },
}


def _file(folder: Path, values: object) -> str:
    path = folder / "study.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


def _with(**changes: object) -> dict[str, object]:
    return {**_STUDY, **changes}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_with(atribute={}), "study.yaml: atribute is not a key of a study; did you mean attribute?"),
        (_with(surface={"alpha": [0]}), "surface.alpha is not a key of a study; did you mean alphas?"),
        (_with(patch={"continue": {"stepz": 1}}), "patch.continue.stepz is not a key of a study; did you mean steps?"),
        (_with(surface={"samples": "many"}), "surface.samples = 'many': input should be a valid integer"),
        (_with(surface={"samples": 0}), "surface.samples = 0: input should be greater than 0; change it"),
        (_with(surface={"alphas": [0.5, 1]}), "surface.alphas = [0.5, 1.0] lacks 0, the model as it is; add 0"),
        (_with(scan={"alphas": [1]}), "scan.alphas = [1.0] lacks 0"),
        (_with(surface={"alphas": [0, 1, 1.0]}), "surface.alphas = [0.0, 1.0, 1.0] names a value twice"),
        (
            _with(attribute={"top_k": 200}),
            "attribute.top_k = 200 is more than the 100 candidates; lower it or raise prefilter.candidates",
        ),
        (
            _with(prompts={**_STUDY["prompts"], "held_out": []}),  # type: ignore[dict-item]
            "prompts.held_out is empty; the verdict needs prompts that attribution never saw",
        ),
        (
            _with(prompts={"attribution": _STUDY["prompts"]["held_out"], "held_out": _STUDY["prompts"]["held_out"]}),  # type: ignore[index]
            "prompts: id 'p2' stands twice",
        ),
        (_with(behaviours=[]), "behaviours is empty"),
        (
            _with(behaviours=[{"id": "other", "description": "x"}]),
            "prompts: p1 names the behaviour dose; known: other",
        ),
        ({"name": "mine"}, "models is missing; give it, or an organism that brings it"),
        (_with(organism={}), "models comes with the organism; remove it, or remove organism"),
        (_with(patch={"headline": "retrain"}), "patch.headline = retrain is not among patch.protocols = ['continue']"),
        (_with(patch={"arms": ["after", "after"]}), "patch.arms names after twice; remove it"),
        (_with(patch={"seeds": [1, 1]}), "patch.seeds = [1, 1] is empty or repeats a seed"),
        (_with(patch={"seeds": []}), "patch.seeds = [] is empty"),
        (_with(patch={"seeds": {"retrain": [0]}}), "patch.seeds has no seeds for continue"),
        ({**_STUDY, "name": None}, "name = None: input should be a valid string"),
        ("name: [unclosed", "study.yaml: not valid YAML"),
        ("just a word", "study.yaml: holds str, not keys and values"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_study(_file(tmp_path, values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("surface.samples", "not of the form section.key=value"),
        ("surface.samples=[", "is not a YAML value"),
        ("name.first=x", "name is a value, not a section"),
        ("surface.sample=3", "surface.sample is not a key of a study; did you mean samples?"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RequestError, match=r"--set|study\.yaml") as caught:
        load_study(_file(tmp_path, _STUDY), [override])
    assert message in str(caught.value)


def test_overrides_are_yaml_and_make_sections(tmp_path: Path) -> None:
    study = load_study(_file(tmp_path, _STUDY), ["surface.samples=7", "patch.seeds=[3, 4]", "models.after=c"])
    assert (study.surface.samples, study.patch.seeds_of("continue")) == (7, (3, 4))
    assert study.models is not None
    assert study.models.after.path == "c"


def test_an_unknown_preset_gets_the_nearest_one() -> None:
    with pytest.raises(RequestError, match=r"STUDY = organsm is neither a file nor a preset; did you mean organism\?"):
        load_study("organsm")


def test_the_dumped_study_is_the_study(tmp_path: Path) -> None:
    study = load_study(_file(tmp_path, _STUDY))
    assert load_study(_file(tmp_path, dump_study(study))) == study


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_study_with_a_title(name: str) -> None:
    study = load_study(name)
    assert isinstance(study, Study)
    assert study.name == name
    assert study.title
