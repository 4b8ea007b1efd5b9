"""The report says "pre-registered" only of the run that was registered, and lists every deviation of any other."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.report.fake_run import fake_study, write_fake_run

from datablame import __version__
from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import Inputs, read_json, write_json
from datablame.pipeline.preregistration import freeze
from datablame.pipeline.references import references
from datablame.report.artifacts import read_artifacts
from datablame.report.preregistered import Preregistration, compare, differences
from datablame.report.registration import BEGUN, FILE, content_hash
from datablame.report.run import run
from datablame.study.schema import Study

PAGES = ("comparison.md", "writeup/report.md", "writeup/slides.md", "index.html")
JUDGE = {"asked": {}, "classifier": "keywords", "attribution": "keywords"}


def registered_run(root: Path, study: Study | None = None, *, ran: Study | None = None, begun: bool = True) -> Inputs:
    """A finished run of `ran` in a folder in which `study` was registered, before it was patched or too late."""
    study = study or fake_study()
    frozen = freeze(study, root / "elsewhere")
    inputs = write_fake_run(root / "run", ran or study)
    write_json(root / "run" / FILE, read_json(frozen.path))
    write_json(root / "run" / "artifacts/judge.json", JUDGE)
    if begun:
        known = {"datablame": __version__, "references": references(study, root / "run")}
        write_json(root / "run" / BEGUN, {"sha256": frozen.sha256, **known})
    return inputs


def compared(inputs: Inputs, study: Study) -> Preregistration:
    found = read_artifacts(study, inputs)
    return compare(found.preregistration.get("registered"), study, found)


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = read_json(path)
    change(values)
    write_json(path, values)


def sealed_again(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another content under a hash that fits it, as by somebody who wants to deceive."""
    changed(path, change)
    changed(path, lambda values: values.update(sha256=content_hash(values)))


def test_a_run_that_matches_is_pre_registered(tmp_path: Path) -> None:
    inputs = registered_run(tmp_path)
    held = read_json(inputs.root / FILE)
    assert compared(inputs, fake_study()) == Preregistration("pre-registered", held["sha256"], held["date"], ())


def test_without_a_file_nothing_is_claimed(tmp_path: Path) -> None:
    found = compared(write_fake_run(tmp_path, fake_study()), fake_study())
    assert found == Preregistration("none", None, None, ())
    assert found.sentence() == "This study was not pre-registered."


@pytest.mark.parametrize(
    ("change", "deviations"),
    [
        ({"margin": 0.3}, [("patch.margin", 0.2, 0.3)]),
        ({"headline": "continue"}, [("patch.headline", "retrain", "continue")]),
        (
            {"seeds": {"retrain": [0, 1, 2, 3, 4, 5], "continue": [0]}, "samples": 7},
            [
                ("patch.seeds.retrain", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]),
                ("patch.samples", 25, 7),
            ],
        ),
    ],
)
def test_every_changed_key_is_a_deviation(tmp_path: Path, change: dict[str, Any], deviations: list[Any]) -> None:
    other = fake_study(**change)
    found = compared(registered_run(tmp_path, ran=other), other)
    assert found.status == "deviates"
    assert sorted(found.deviations) == sorted(deviations)


def test_a_changed_prompt_and_a_changed_behaviour_are_deviations(tmp_path: Path) -> None:
    study = fake_study()
    assert study.prompts is not None
    reworded = study.prompts.held_out[0].model_copy(update={"text": "reworded"})
    prompts = study.prompts.model_copy(update={"held_out": (reworded, *study.prompts.held_out[1:])})
    first, *others = study.behaviours
    other = study.model_copy(
        update={"prompts": prompts, "behaviours": (first.model_copy(update={"rubric": "new"}), *others)}
    )
    fields = {each.field for each in compared(registered_run(tmp_path, ran=other), other).deviations}
    assert fields == {"prompts.held_out", "behaviours", "prompts.held_out.sha256"}


def test_a_registration_after_the_fact_is_none(tmp_path: Path) -> None:
    found = compared(registered_run(tmp_path, begun=False), fake_study())
    assert found.status == "deviates"
    (late,) = found.deviations
    assert late.field == "date (a registration after the fact is none)"
    assert late.actual == "the patch phase had begun without it"


def test_a_file_changed_by_hand_has_a_broken_hash_and_says_so(tmp_path: Path) -> None:
    inputs = registered_run(tmp_path)
    stated = read_json(inputs.root / FILE)["sha256"]
    changed(inputs.root / FILE, lambda values: values["margins"].update(drop=0.01))
    (broken,) = compared(inputs, fake_study()).deviations
    assert "the hash is broken" in broken.field
    assert (broken.registered, broken.actual) == (stated, content_hash(read_json(inputs.root / FILE)))


def test_a_file_sealed_again_is_not_the_one_that_the_patch_phase_began_under(tmp_path: Path) -> None:
    inputs = registered_run(tmp_path)
    first = read_json(inputs.root / FILE)["sha256"]
    sealed_again(inputs.root / FILE, lambda values: values["margins"].update(drop=0.01))
    (other,) = compared(inputs, fake_study()).deviations
    assert other == ("sha256 when the patch phase began", read_json(inputs.root / FILE)["sha256"], first)


@pytest.mark.parametrize("text", ["not json", "[1]", ""])
def test_a_file_that_is_no_registration_claims_nothing(tmp_path: Path, text: str) -> None:
    inputs = registered_run(tmp_path)
    (inputs.root / FILE).write_text(text)
    found = compared(inputs, fake_study())
    assert (found.status, found.hash, found.date) == ("deviates", None, None)
    assert "the hash is broken" in found.deviations[0].field


def test_another_version_other_data_and_another_classifier_are_deviations(tmp_path: Path) -> None:
    inputs = registered_run(tmp_path)
    changed(inputs.root / BEGUN, lambda values: values.update(datablame="9.9"))
    changed(inputs.root / BEGUN, lambda values: values["references"].update(data={"files": {"pool.parquet": "ab"}}))
    changed(inputs.root / "artifacts/judge.json", lambda values: values.update(classifier="claude"))
    assert compared(inputs, fake_study()).deviations == (
        ("datablame", __version__, "9.9"),
        ("data.files.pool.parquet", "(absent)", "ab"),
        ("classifier.classifier", "keywords", "claude"),
    )


def test_a_commit_that_was_unknown_cannot_deviate_and_a_known_one_can(tmp_path: Path) -> None:
    inputs = registered_run(tmp_path)
    changed(inputs.root / BEGUN, lambda values: values["references"]["models"]["after"].update(commit="c1"))
    assert compared(inputs, fake_study()).status == "pre-registered"

    def known(values: dict[str, Any]) -> None:
        values["references"]["models"]["after"]["commit"] = "c0"

    sealed_again(inputs.root / FILE, known)
    changed(inputs.root / BEGUN, lambda values: values.update(sha256=read_json(inputs.root / FILE)["sha256"]))
    assert compared(inputs, fake_study()).deviations == (("models.after.commit", "c0", "c1"),)


def test_a_frozen_alpha_star_and_an_untested_hypothesis_are_compared(tmp_path: Path) -> None:
    inputs = registered_run(tmp_path)
    actual = read_artifacts(fake_study(), inputs).alpha_star["alpha_star"]

    def frozen(values: dict[str, Any]) -> None:
        values["alpha_star"] |= {"surface_done": True, "value": 0.25}
        values["tests"]["family"].append("bm25")

    sealed_again(inputs.root / FILE, frozen)
    changed(inputs.root / BEGUN, lambda values: values.update(sha256=read_json(inputs.root / FILE)["sha256"]))
    assert compared(inputs, fake_study()).deviations == (
        ("alpha_star.value", 0.25, actual),
        ("tests.family.bm25", "tested", "not tested: it flagged no document"),
    )


def test_a_key_without_a_value_is_as_good_as_none() -> None:
    assert differences({"a": None, "b": {"c": [1, 2]}}, {"b": {"c": [1, 2], "d": None}}) == ()
    assert differences({"b": {"c": [1, 2]}}, {"b": {"c": [2, 1]}, "a": 0}) == (
        ("b.c", [1, 2], [2, 1]),
        ("a", "(absent)", 0),
    )


@pytest.mark.parametrize("deviates", [False, True])
def test_every_page_and_the_results_say_what_is_so(tmp_path: Path, deviates: bool) -> None:
    ran = fake_study(margin=0.3) if deviates else fake_study()
    inputs = registered_run(tmp_path, ran=ran)
    held = read_json(inputs.root / FILE)
    run(ran, inputs, inputs.root / "artifacts/report", Execution(1, 1), Silent())
    results = read_json(inputs.root / "final_results.json")
    schema = json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text())
    jsonschema.validate(results["preregistration"], schema["properties"]["preregistration"])
    assert results["preregistration"] == {
        "status": "deviates" if deviates else "pre-registered",
        "hash": held["sha256"],
        "date": held["date"],
        "deviations": [{"field": "patch.margin", "registered": 0.2, "actual": 0.3}] if deviates else [],
    }
    for name in PAGES:
        page = (inputs.root / name).read_text().replace("\\", "")
        assert held["sha256"] in page, name
        assert held["date"] in page, name
        assert ("Pre-registered before the patch phase began" in page) is not deviates, name
        assert ("deviates from the file" in page) is deviates, name
        if name != "writeup/slides.md":
            assert ("patch.margin: registered 0.2, in this run 0.3" in page) is deviates, name
