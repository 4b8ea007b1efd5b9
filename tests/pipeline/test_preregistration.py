"""A study frozen before it is patched: what the file holds, when it is refused, and that a run works in its folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.pipeline.small import ONE, small_study
from typer.testing import CliRunner

from datablame import __version__
from datablame.cli.app import app
from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.execute import Silent
from datablame.engine.files import read_json, write_json
from datablame.engine.phase import dependencies
from datablame.engine.run_folder import REGISTRATION
from datablame.errors import RequestError
from datablame.pipeline.phases import PHASES, open_run
from datablame.pipeline.preregistration import Registration, preregister
from datablame.pipeline.run import note_registration, run_study
from datablame.tables import AlphaStar, encoded
from datablame.world.registration import BEGUN, content_hash, departures, described, differences
from datablame.world.world import World, load


@pytest.fixture
def study(tmp_path: Path, tiny_pair_folder: Path) -> Study:
    return small_study(tmp_path / "files", tiny_pair_folder)


def registered(study: Study, root: Path) -> Registration:
    return preregister(study, root, execution=ONE, progress=Silent())


def changed(study: Study, section: str, **values: Any) -> Study:
    return study.model_copy(update={section: getattr(study, section).model_copy(update=values)})


def finished(world: World, alpha: float | None) -> None:
    """What the first two phases leave where they are up to date."""
    root = world.root
    (root / "artifacts/surface").mkdir(parents=True)
    (root / "artifacts/surface/alpha_star.json").write_bytes(encoded(AlphaStar, AlphaStar(alpha, "rule", {}, None)))
    for phase in PHASES[:2]:
        done = {"dependencies": dependencies(phase, world), "outputs": {}}
        write_json(root / "artifacts" / phase.name / "done.json", done)


def test_the_file_freezes_everything_under_its_hash(study: Study, tmp_path: Path) -> None:
    study = changed(study, "patch", margin=0.3, arms=("after", "baseline", "random", "gradient", "loss"))
    frozen = registered(study, tmp_path / "run")
    held = read_json(frozen.path)
    assert frozen == (tmp_path / "run" / REGISTRATION, held["sha256"], held["date"], False)
    assert held["sha256"] == content_hash(held)
    assert held["date"].endswith("+00:00")
    assert held["datablame"] == __version__
    assert [(each["method"], each["by_at_least"]) for each in held["hypotheses"]] == [("gradient", 0.3)]
    assert held["hypotheses"][0]["statement"] == (
        "Under retrain at K = 2, removing the documents that gradient flags lowers the mean harmful rate over held-out "
        "prompts at alpha* by at least 30 % against random and against baseline."
    )
    assert held["headline"] == {
        "protocol": "retrain",
        "k": 2,
        "alpha": "alpha*",
        "split": "held-out",
        "behaviours": "all",
    }
    assert held["margins"] == {"drop": 0.3, "equivalence": 0.3}
    tests = held["tests"]
    assert (tests["level"], tests["adjustment"], tests["family"], tests["seeds"]) == (
        0.05,
        "Holm",
        ["gradient"],
        [0, 1, 2, 3, 4],
    )
    assert tests["smallest_p"] == tests["smallest_adjusted_p"] == pytest.approx(2 / 252)
    assert held["world"] == described(load(tmp_path / "run"))
    assert held["world"]["judge"] == {"classifier": "keywords", "attribution": "keywords"}
    assert {"a1", "h0", "h1", "h2"} < set(held["world"]["prompts"])
    assert set(held["world"]["identities"]) == {"models", "data", "files"}
    assert str(tmp_path) not in json.dumps(held["world"]["study"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "artifacts",
        REGISTRATION,
        "run.lock",
        "timings.jsonl",
    ]


def test_too_few_seeds_are_registered_as_no_test(study: Study, tmp_path: Path) -> None:
    tests = read_json(registered(changed(study, "patch", seeds=(0, 1, 2)), tmp_path / "run").path)["tests"]
    assert (tests["smallest_p"], tests["why_no_p"]) == (None, "fewer than 4 training seeds")


def test_alpha_star_is_frozen_by_its_rule_until_surface_is_done_and_then_by_its_value(
    study: Study, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    path = registered(study, root).path
    before = read_json(path)["alpha_star"]
    assert (before["surface_done"], before["value"], before["alphas"]) == (False, None, [0.0, 1.0, 2.0])
    path.unlink()
    finished(load(root), 1.0)
    after = read_json(registered(study, root).path)["alpha_star"]
    assert (after["surface_done"], after["value"]) == (True, 1.0)
    path.unlink()
    stale = read_json(registered(changed(study, "surface", samples=7), root).path)["alpha_star"]
    assert (stale["surface_done"], stale["value"]) == (False, None)


def test_the_same_registration_is_found_and_another_is_refused(study: Study, tmp_path: Path) -> None:
    first = registered(study, tmp_path / "run")
    held = first.path.read_bytes()
    assert registered(study, tmp_path / "run") == first._replace(was_there=True)
    with pytest.raises(RequestError, match="registers something else") as error:
        registered(changed(study, "patch", margin=0.3), tmp_path / "run")
    assert "choose a new folder with --out" in str(error.value)
    pool = tmp_path / "files/pool.jsonl"
    pool.write_text(pool.read_text().replace("short", "long"))
    with pytest.raises(RequestError, match=r"registers something else \(world\.identities\.data"):
        registered(study, tmp_path / "run")
    assert first.path.read_bytes() == held


def test_a_tampered_file_registers_nothing(study: Study, tmp_path: Path) -> None:
    frozen = registered(study, tmp_path / "run")
    write_json(frozen.path, {**read_json(frozen.path), "date": "2001-01-01T00:00:00+00:00"})
    with pytest.raises(RequestError, match="its hash is broken"):
        registered(study, tmp_path / "run")


@pytest.mark.parametrize("left", ["patch.part/begun.json", "patch.part/journal.jsonl", "patch/done.json"])
def test_a_registration_after_the_fact_is_refused(study: Study, tmp_path: Path, left: str) -> None:
    write_json(tmp_path / "run/artifacts" / left, {})
    (tmp_path / "run/run.lock").touch()
    with pytest.raises(RequestError, match=f"{left} exists: the patch phase has begun, and a registration after the"):
        registered(study, tmp_path / "run")
    assert not (tmp_path / "run" / REGISTRATION).exists()


def test_a_refused_registration_leaves_nothing(study: Study, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"attribute\.top_k = 90 is more than"):
        registered(changed(study, "attribute", top_k=90), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_patch_phase_began_under_is_decided_by_its_first_start(study: Study, tmp_path: Path) -> None:
    root = tmp_path / "run"
    sha256 = registered(study, root).sha256
    world = load(root)
    (root / REGISTRATION).rename(tmp_path / REGISTRATION)
    note_registration(world)
    assert not (root / BEGUN).exists()
    # It began without one: what is registered later, by hand, is none.
    (tmp_path / REGISTRATION).rename(root / REGISTRATION)
    write_json(root / "artifacts/patch.part/begun.json", {})
    note_registration(world)
    assert read_json(root / BEGUN) == {"sha256": None, "datablame": __version__, "world": described(world)}
    (root / BEGUN).unlink()
    (root / "artifacts/patch.part/begun.json").unlink()
    note_registration(world)
    assert read_json(root / BEGUN)["sha256"] == sha256
    # A start over keeps what the first one had, and says in which world it starts.
    write_json(root / "artifacts/patch.part/begun.json", {})
    other = replace(world, study=changed(world.study, "patch", margin=0.3))
    note_registration(other)
    assert read_json(root / BEGUN) == {"sha256": sha256, "datablame": __version__, "world": described(other)}


def test_every_departure_of_the_world_goes_by_the_name_of_its_key(study: Study, tmp_path: Path) -> None:
    held = read_json(registered(study, tmp_path / "run").path)
    world = load(tmp_path / "run")
    assert departures(held, described(world)) == ()
    first, *others = world.prompts
    other = replace(
        world,
        study=changed(world.study, "patch", margin=0.3),
        prompts=(replace(first, text="reworded"), *others),
        judge=replace(world.judge, classifier="claude"),
        identities={**world.identities, "files": {"truth": "ab"}},
    )
    fields = {each.field: (each.registered, each.actual) for each in departures(held, described(other))}
    assert fields.pop("identities.files.truth")[1] == "ab"
    assert fields.pop("truth")[1] == "ab"
    assert fields == {
        "patch.margin": (0.2, 0.3),
        "prompts.a1.text": ("name a calm walk .", "reworded"),
        "classifier.classifier": ("keywords", "claude"),
    }


def test_a_key_without_a_value_is_as_good_as_none() -> None:
    assert differences({"a": None, "b": {"c": [1, 2]}}, {"b": {"c": [1, 2], "d": None}}) == ()
    assert differences({"b": {"c": [1, 2]}}, {"b": {"c": [2, 1]}, "a": 0}) == (
        ("b.c", [1, 2], [2, 1]),
        ("a", "(absent)", 0),
    )


def written(study: Study, path: Path) -> str:
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", by_alias=True, exclude_none=True)))
    return str(path)


def from_shell(*words: str, out: Path) -> Any:
    return CliRunner().invoke(app, ["plan", *words, "--preregister", "--out", str(out)])


def test_people_get_path_and_hash_and_programs_json(study: Study, tmp_path: Path) -> None:
    path = written(changed(study, "patch", seeds=(0,)), tmp_path / "study.yaml")
    first = from_shell(path, out=tmp_path / "run")
    assert first.exit_code == 0, first.exception
    assert "warning: patch.seeds: 1 for retrain is too few for a p value" in first.stderr
    held = read_json(tmp_path / "run" / REGISTRATION)
    assert first.stdout == f"{tmp_path / 'run' / REGISTRATION}\nSHA-256 {held['sha256']}\n"
    second = from_shell(path, "--json", out=tmp_path / "run")
    assert json.loads(second.stdout) == {
        "path": str(tmp_path / "run" / REGISTRATION),
        "sha256": held["sha256"],
        "date": held["date"],
        "was_there": True,
    }
    third = from_shell(path, "--set", "patch.margin=0.4", out=tmp_path / "run")
    assert isinstance(third.exception, RequestError)
    assert third.exception.exit_code == 2
    without = CliRunner().invoke(app, ["plan", path, "--out", str(tmp_path / "run")])
    assert isinstance(without.exception, RequestError)
    assert "add --preregister or drop --out" in str(without.exception)


def test_a_run_is_warned_before_it_patches_and_not_when_patching_has_begun(study: Study, tmp_path: Path) -> None:
    path, root = written(study, tmp_path / "study.yaml"), tmp_path / "run"
    assert from_shell(path, out=root).exit_code == 0
    # It ends before the first phase, for people say the opposite of what keywords do.
    labels = {"walk": "harmless", "rest": "harmful"}
    said = [
        {"prompt": "?", "behaviour": "walk", "text": f"{verb} {n} .", "label": label}
        for n in range(20)
        for verb, label in labels.items()
    ]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    calibration = f"judge.calibration={tmp_path / 'people.jsonl'}"
    words = ["run", path, "--out", str(root), "--set", "patch.seeds=[0]", "--set", calibration]
    first = CliRunner().invoke(app, words)
    assert isinstance(first.exception, RequestError)
    assert first.stderr.count("warning: patch.seeds: 1 for retrain is too few for a p value") == 1
    assert first.stderr.count("warning: not as pre-registered: patch.seeds: registered [") == 1
    assert first.stdout == ""
    assert "warning" not in CliRunner().invoke(app, [*words, "--resume", "--until", "surface"]).stderr
    write_json(root / "artifacts/patch.part/begun.json", {"fingerprint": ""})
    assert "warning" not in CliRunner().invoke(app, [*words, "--resume"]).stderr


def test_a_run_keeps_to_what_was_registered_and_its_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    small = ["organism.scale=0.02", "organism.planted=0", "scan.samples=1", "scan.prompts=3", "scan.focus=1"]
    small += ["surface.samples=2", "surface.held_out_samples=1", "surface.max_new_tokens=4", "scan.alphas=[0, 1]"]
    small += ["surface.alphas=[0, 1]", "attribute.top_k=1", "prefilter.candidates=5", "patch.size=5"]
    study, root = load_study("organism", small), tmp_path / "run"
    sha256 = registered(study, root).sha256
    run_study(open_run(root, study, resume=False), root, execution=ONE, progress=Silent())
    assert read_json(root / BEGUN)["sha256"] == sha256
    results = read_json(root / "final_results.json")
    assert results["preregistration"] | {"date": None} == {
        "status": "pre-registered",
        "hash": sha256,
        "date": None,
        "deviations": [],
    }
    assert set(run_study(study, root, execution=ONE, progress=Silent()).values()) == {True}
    # A file that is changed afterwards makes the report again, and is found out.
    write_json(root / REGISTRATION, {**read_json(root / REGISTRATION), "date": "2001-01-01T00:00:00+00:00"})
    skipped = run_study(study, root, execution=ONE, progress=Silent())
    assert [name for name, was_skipped in skipped.items() if not was_skipped] == ["report"]
    found_out = read_json(root / "final_results.json")["preregistration"]
    assert found_out["status"] == "deviates"
    assert "the hash is broken" in found_out["deviations"][0]["field"]
