"""The report says "pre-registered" only of the run that was registered, and lists every deviation of any other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report.fake_run import fake_study, read_results_file, reported, results_of, write_fake_run

from datablame import __version__
from datablame.engine.files import read_json, write_json
from datablame.engine.run_folder import REGISTRATION
from datablame.report.gates import Preregistration, preregistration
from datablame.world.registration import BEGUN, content_hash, described
from datablame.world.world import World

PAGES = ("comparison.md", "writeup/report.md", "writeup/slides.md", "index.html")


def registered_run(root: Path, *, begun: bool = True) -> World:
    """A finished run in a folder in which its world was registered, before it was patched or too late."""
    world = write_fake_run(root, fake_study())
    frozen = described(world)
    registered: dict[str, Any] = {
        **{"schema_version": 1, "datablame": __version__, "study": "fake", "date": "2026-01-01T00:00:00+00:00"},
        **{"world": frozen, "margins": {"drop": 0.2}, "tests": {"family": ["gradient", "activation"]}},
        "alpha_star": {"surface_done": False, "value": None},
    }
    sha256 = content_hash(registered)
    write_json(root / REGISTRATION, {**registered, "sha256": sha256})
    if begun:
        write_json(root / BEGUN, {"sha256": sha256, "datablame": __version__, "world": frozen})
    return world


def compared(world: World) -> Preregistration:
    return preregistration(world, world.root, results_of(world))


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = read_json(path)
    change(values)
    write_json(path, values)


def sealed_again(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another content under a hash that fits it, as by somebody who wants to deceive."""
    changed(root / REGISTRATION, change)
    changed(root / REGISTRATION, lambda values: values.update(sha256=content_hash(values)))


def test_a_run_that_matches_is_pre_registered(tmp_path: Path) -> None:
    world = registered_run(tmp_path)
    held = read_json(tmp_path / REGISTRATION)
    assert compared(world) == Preregistration("pre-registered", held["sha256"], held["date"], ())


def test_without_a_file_nothing_is_claimed(tmp_path: Path) -> None:
    found = compared(write_fake_run(tmp_path, fake_study()))
    assert found == Preregistration("none", None, None, ())
    assert found.sentence() == "This study was not pre-registered."


def with_margin(world: World, margin: float) -> World:
    patch = world.study.patch.model_copy(update={"margin": margin})
    return replace(world, study=world.study.model_copy(update={"patch": patch}))


def test_a_registration_after_the_fact_is_none(tmp_path: Path) -> None:
    found = compared(registered_run(tmp_path, begun=False))
    assert found.status == "deviates"
    (late,) = found.deviations
    assert late.field == "date (a registration after the fact is none)"
    assert late.actual == "the patch phase had begun without it"


def test_a_file_changed_by_hand_has_a_broken_hash_and_says_so(tmp_path: Path) -> None:
    world = registered_run(tmp_path)
    stated = read_json(tmp_path / REGISTRATION)["sha256"]
    changed(tmp_path / REGISTRATION, lambda values: values["margins"].update(drop=0.01))
    (broken,) = compared(world).deviations
    assert "the hash is broken" in broken.field
    assert (broken.registered, broken.actual) == (stated, content_hash(read_json(tmp_path / REGISTRATION)))


def test_a_file_sealed_again_is_not_the_one_that_the_patch_phase_began_under(tmp_path: Path) -> None:
    world = registered_run(tmp_path)
    first = read_json(tmp_path / REGISTRATION)["sha256"]
    sealed_again(tmp_path, lambda values: values["margins"].update(drop=0.01))
    (other,) = compared(world).deviations
    assert other == ("sha256 when the patch phase began", read_json(tmp_path / REGISTRATION)["sha256"], first)


@pytest.mark.parametrize("text", ["not json", "[1]", ""])
def test_a_file_that_is_no_registration_claims_nothing(tmp_path: Path, text: str) -> None:
    world = registered_run(tmp_path)
    (tmp_path / REGISTRATION).write_text(text)
    found = compared(world)
    assert (found.status, found.hash, found.date) == ("deviates", None, None)
    assert "the hash is broken" in found.deviations[0].field


def test_another_version_is_a_deviation(tmp_path: Path) -> None:
    world = registered_run(tmp_path)
    changed(tmp_path / BEGUN, lambda values: values.update(datablame="9.9"))
    assert compared(world).deviations == (("datablame", __version__, "9.9"),)


def test_a_frozen_alpha_star_and_an_untested_hypothesis_are_compared(tmp_path: Path) -> None:
    world = registered_run(tmp_path)

    def frozen(values: dict[str, Any]) -> None:
        values["alpha_star"] |= {"surface_done": True, "value": 0.25}
        values["tests"]["family"].append("bm25")

    sealed_again(tmp_path, frozen)
    changed(tmp_path / BEGUN, lambda values: values.update(sha256=read_json(tmp_path / REGISTRATION)["sha256"]))
    assert compared(world).deviations == (
        ("alpha_star.value", 0.25, 2.0),
        ("tests.family.bm25", "tested", "not tested: it flagged no document"),
    )


@pytest.mark.parametrize("deviates", [False, True])
def test_every_page_and_the_results_say_what_is_so(tmp_path: Path, deviates: bool) -> None:
    world = registered_run(tmp_path)
    if deviates:
        world = with_margin(world, 0.3)
    held = read_json(tmp_path / REGISTRATION)
    reported(world)
    assert read_results_file(tmp_path)["preregistration"] == {
        "status": "deviates" if deviates else "pre-registered",
        "hash": held["sha256"],
        "date": held["date"],
        "deviations": [{"field": "patch.margin", "registered": 0.2, "actual": 0.3}] if deviates else [],
    }
    for name in PAGES:
        page = (tmp_path / name).read_text().replace("\\", "")
        assert held["sha256"] in page, name
        assert held["date"] in page, name
        assert ("Pre-registered before the patch phase began" in page) is not deviates, name
        assert ("deviates from the file" in page) is deviates, name
        if name != "writeup/slides.md":
            assert ("patch.margin: registered 0.2, in this run 0.3" in page) is deviates, name
