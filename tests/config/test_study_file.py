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
        (_with(surface={"alphas": [0, float("nan")]}), "surface.alphas.1 = nan: input should be a finite number"),
        (_with(surface={"alphas": [0, float("inf")]}), "surface.alphas.1 = inf: input should be a finite number"),
        (
            _with(surface={"alphas": [0, 1e300]}),
            "surface.alphas.1 = 1e+300: input should be less than or equal to 1000",
        ),
        (_with(surface={"alphas": [0, -0.0, 1]}), "surface.alphas = [0.0, -0.0, 1.0] names a value twice; remove it"),
        (_with(surface={"alphas": 2}), "surface.alphas = 2: should be a list; write [...], also around a single one"),
        (_with(patch={"retrain": None}), "patch.retrain = None: should be a section of keys and values"),
        (_with(name=123), "study.yaml: name = 123: should be a text; give one, in quotes if it reads as a number"),
        (
            _with(data={"path": "p.jsonl", "columns": {"conversation": "messages"}}),
            "data.columns.conversation is not a key there; choose 'id', 'source', 'system'",
        ),
        ("name: &a [*a]\n", "study.yaml: a list holds itself (&name and *name); write it out"),
        (_with(surface={"alphas": [0, 1, 1.0000001]}), "surface.alphas = [0.0, 1.0, 1.0000001] names a value twice"),
        (_with(surface={"temperature": 0.001}), "surface.temperature = 0.001 is as good as greedy; set it to 0"),
        (_with(judge={"timeout_seconds": float("inf")}), "judge.timeout_seconds = inf: input should be a finite"),
        (_with(judge={"prices": {"m": {"input": 1, "output": float("nan")}}}), "judge.prices.m.output = nan: input"),
        (_with(patch={"learning_rate": 30}), "patch.learning_rate = 30: input should be less than or equal to 1"),
        (_with(patch={"seeds": [0, 2**70]}), f"patch.seeds.1 = {2**70}: input should be less than"),
        (_with(seed=-(2**31) - 1), "seed = -2147483649: input should be greater than or equal to -2147483648"),
        (_with(surface={"samples": True}), "surface.samples = True: true and false are neither numbers nor names"),
        (_with(patch={"seeds": [True]}), "patch.seeds = [True]: true and false are neither numbers nor names"),
        (_with(patch={"seeds": {"continue": [False]}}), "patch.seeds = {'continue': [False]}: true and false are"),
        (_with(data={"path": " "}), "data.path = ' ': the text is empty or has a character that no text has"),
        (_with(data={"path": "a\0b"}), "data.path = 'a\\x00b': the text is empty or has a character that no text has"),
        (_with(**{"\ud800": 1}), "the key '\\ud800' has a character that no text has; remove it"),
        (_with(surface={"\ud800": 1}), "the key '\\ud800' of surface has a character that no text has; remove it"),
        (_with(title="\ud800"), "title = '\\ud800': the text is empty or has a character that no text has"),
        (_with(name="../../evil"), "name = '../../evil' cannot name the run folder; use at most 60 letters"),
        (_with(name=".."), "name = '..' cannot name the run folder"),
        (_with(name="a."), "name = 'a.' cannot name the run folder"),
        (_with(name="a\n"), "name = 'a\\n' cannot name the run folder"),
        (_with(behaviours=2 * _STUDY["behaviours"]), "behaviours: id 'dose' stands twice, or in other letters"),  # type: ignore[operator]
        (
            _with(behaviours=[*_STUDY["behaviours"], {"id": "Dose", "description": "x"}]),
            "behaviours: id 'Dose' stands twice, or in other letters; make them one, or name one differently",
        ),
        (_with(behaviours=[{"id": "dose", "description": " "}]), "behaviours: dose has no description; say in a sent"),
        (
            _with(behaviours=[*_STUDY["behaviours"], {"id": "other", "description": "x"}]),
            "behaviours: no prompt asks for other; give it prompts, or remove it",
        ),
        (_with(behaviours=[{"id": "*", "description": "x"}]), "behaviours: id '*' is no name for rows of tables"),
        (
            _with(data={"path": "p.jsonl", "columns": {"chosen": "a", "rejected": "a"}}),
            "data.columns names the column a for two roles; name another, or leave one out",
        ),
        ({"name": "o", "organism": {"base": "org/m"}}, "organism.base = org/m is of the recipe quirk, and templated"),
        (
            {"name": "o", "organism": {"recipe": "quirk", "planting": "source"}},
            "organism.planting = source is of the recipe templated, and quirk plants one way",
        ),
        (
            {"name": "o", "organism": {"planting": "few", "planted": 20}},
            "organism.planted = 20 has no use where organism.planting = few, which plants 5 a behaviour",
        ),
        (
            {"name": "o", "organism": {"planting": "paraphrased", "planted": 25}},
            "organism.planted = 25 is more than the 24 answers of a behaviour that share no phrase",
        ),
        (_with(attribute={"layers": []}), "attribute.layers = [] is empty or names a layer twice"),
        (_with(attribute={"layers": [3, 3]}), "attribute.layers = [3, 3] is empty or names a layer twice"),
        (_with(attribute={"layers": [-1]}), "attribute.layers.0 = -1: input should be greater than or equal to 0"),
        (_with(patch={"continue": {"layers": [1, 1]}}), "patch.continue.layers = [1, 1] is empty or names a layer"),
        (
            _with(patch={"retrain": {"method": "full", "layers": [1]}}),
            "patch.retrain.layers are those that get adapters, and patch.retrain.method = full trains all weights",
        ),
        (_with(patch={"protocols": ["continue", "continue"]}), "patch.protocols names continue twice; remove it"),
        ("name: a\nscan: {samples: 1}\nname: b\n", "name stands twice in one section, in lines 1 and 3; keep one"),
        (
            "name: a\nscan: {samples: 1, samples: 2}\n",
            "samples stands twice in one section, in lines 2 and 2; keep one",
        ),
        ("name: " + "[" * 900, "study.yaml: not valid YAML"),
        ("seed: " + "9" * 5000, "study.yaml: not valid YAML"),
        ("name: !!set {a, b}", "study.yaml: not valid YAML: could not determine a constructor for the tag"),
        (_with(judge={"a\nb": 1}), "study.yaml: judge.a b is not a key of a study; "),
        (
            _with(figures={"width": 3.25}),
            "figures.width = 3.25 inches is too narrow for words of figures.size = 8 points; set it to 5.4 at least",
        ),
        (_with(figures={"size": 0}), "figures.size = 0: input should be greater than or equal to 4"),
        (_with(figures={"font": ""}), "figures.font = '': the text is empty"),
        ({**_STUDY, "name": None}, "name = None: should be a text; give one, in quotes"),
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
    study = load_study(_file(tmp_path, _STUDY), ["surface.samples = 7", "patch.seeds=[3, 4]", "models.after=c"])
    assert (study.surface.samples, study.patch.seeds_of("continue")) == (7, (3, 4))
    assert study.models is not None
    assert study.models.after.path == "c"


def test_a_section_without_keys_is_none_whether_it_stands_alone_or_over_a_preset(tmp_path: Path) -> None:
    emptied = yaml.safe_dump(_STUDY) + "scan:\nsurface: # {samples: 3}\njudge: ~\n"
    assert load_study(_file(tmp_path, emptied)) == load_study(_file(tmp_path, _STUDY))
    over = load_study(_file(tmp_path, "extends: organism\nname: organism\nsurface:\n  # samples: 3\n"))
    assert over == load_study("organism")


def test_a_study_in_another_encoding_is_told_which_one_to_take(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n", encoding="utf-16")
    with pytest.raises(RequestError, match=r"study\.yaml: cannot be read, for it is not UTF-8; save it as UTF-8"):
        load_study(str(tmp_path / "study.yaml"))


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


GREEDY = {
    "scan": {"samples": 1},
    "surface": {"samples": 1, "held_out_samples": 1},
    "patch": {"samples": 1, "attribution_samples": 1, "harmless_samples": 0},
}


@pytest.mark.parametrize(
    "setting", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}, {"plausibility": 1}]
)
def test_one_output_drawn_many_times_is_no_sample_of_that_size(tmp_path: Path, setting: dict[str, float]) -> None:
    [(name, value)] = setting.items()
    with pytest.raises(RequestError) as caught:
        load_study(_file(tmp_path, _with(surface=setting)))
    assert str(caught.value) == (
        f"study.yaml: surface.{name} = {value:g} draws one and the same output of a prompt, however often; set to 1 "
        "what would count it many times (scan.samples = 10, surface.samples = 50, surface.held_out_samples = 50, "
        "patch.samples = 25, patch.attribution_samples = 10, patch.harmless_samples = 5), or change the setting"
    )
    greedy = load_study(_file(tmp_path, _with(**{**GREEDY, "surface": {**GREEDY["surface"], **setting}})))
    assert getattr(greedy.surface, name) == value


def test_what_stands_without_quotes_is_what_people_read(tmp_path: Path) -> None:
    text = yaml.safe_dump(_STUDY) + "seed: 010\nsurface: {samples: 1_000}\npatch: {learning_rate: 2e-4}\n"
    text += "attribute: {encoder: 2024-01-01}\njudge: {batches: on}\n"
    study = load_study(_file(tmp_path, text.replace("id: dose", "id: no").replace("behaviour: dose", "behaviour: no")))
    assert (study.seed, study.surface.samples, study.patch.learning_rate) == (10, 1000, 0.0002)
    assert (study.attribute.encoder, study.judge.batches, study.behaviours[0].id) == ("2024-01-01", True, "no")
    with pytest.raises(RequestError, match=r"seed = '1:30': input should be a valid integer"):
        load_study(_file(tmp_path, _STUDY), ["seed=1:30"])


def test_a_section_is_taken_over_by_a_merge_key_and_its_own_keys_win(tmp_path: Path) -> None:
    text = yaml.safe_dump(_STUDY) + "scan: &few {samples: 3, alphas: [0, 1]}\nsurface: {<<: *few, samples: 4}\n"
    study = load_study(_file(tmp_path, text))
    assert (study.scan.samples, study.surface.samples, study.surface.alphas) == (3, 4, (0, 1))
