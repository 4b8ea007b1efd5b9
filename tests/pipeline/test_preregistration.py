"""A study frozen before it is patched: what the file holds, when it is refused, and that a run works in its folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.report.fake_run import fake_study
from typer.testing import CliRunner

from datablame import __version__
from datablame.cli.app import app
from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import hash_file, read_json, write_json
from datablame.errors import RequestError
from datablame.pipeline.preregistration import departures, freeze
from datablame.pipeline.references import begun_under, references
from datablame.pipeline.run import open_run, run_study, states
from datablame.report.registration import BEGUN, FILE, content_hash
from datablame.study.file import load_study
from datablame.study.schema import Study


def without_organism(tmp_path: Path, **patch: Any) -> Study:
    """A study of local files, none of which is a model."""
    for name in ("b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model.safetensors").write_text(name)
    (tmp_path / "pool.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "truth.jsonl").write_text("")
    values = fake_study(**patch).model_dump(mode="json", by_alias=True)
    values["models"] |= {name: {"path": str(tmp_path / name[0])} for name in ("before", "after")}
    places = {"data": {"path": str(tmp_path / "pool.jsonl")}, "truth": str(tmp_path / "truth.jsonl")}
    return Study.model_validate({**values, **places})


def finished_surface(study: Study, root: Path, alpha: float | None) -> None:
    """What the first two phases leave where they are up to date."""
    from datablame.pipeline.fingerprints import fingerprint_of
    from datablame.pipeline.run import PHASES
    from datablame.study.file import dump_study

    root.mkdir(parents=True, exist_ok=True)
    (root / "study.yaml").write_text(dump_study(study))
    write_json(root / "artifacts/surface/alpha_star.json", {"alpha_star": alpha})
    for phase in PHASES[:2]:
        fingerprint = fingerprint_of(phase, study, root)
        write_json(root / "artifacts" / phase.name / "done.json", {"fingerprint": fingerprint, "outputs": {}})


def test_the_file_freezes_everything_under_its_hash(tmp_path: Path) -> None:
    study = without_organism(tmp_path, margin=0.3, arms=["untrained", "baseline", "random", "gradient", "loss"])
    frozen = freeze(study, tmp_path / "run")
    held = read_json(frozen.path)
    assert frozen == (tmp_path / "run" / FILE, held["sha256"], held["date"], False)
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
    assert held["prompts"]["held_out"]["ids"] == ["dose-h0", "dose-h1", "brand-h0", "brand-h1"]
    assert [each["id"] for each in held["behaviours"]] == ["dose", "brand"]
    assert held["classifier"] == {"classifier": "keywords", "attribution": "keywords"}
    assert held["references"] == {
        "models": {
            name: {"files": {"model.safetensors": hash_file(tmp_path / name[0] / "model.safetensors")}}
            for name in ("before", "after")
        },
        "data": {"files": {"pool.jsonl": hash_file(tmp_path / "pool.jsonl")}},
        "files": {"truth": hash_file(tmp_path / "truth.jsonl")},
    }
    assert Study.model_validate(held["config"]) == study
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [FILE]


def test_too_few_seeds_are_registered_as_no_test(tmp_path: Path) -> None:
    tests = read_json(freeze(without_organism(tmp_path, seeds=[0, 1, 2]), tmp_path / "run").path)["tests"]
    assert (tests["smallest_p"], tests["why_no_p"]) == (None, "fewer than 4 training seeds")


def test_other_prompts_have_another_hash(tmp_path: Path) -> None:
    study = without_organism(tmp_path)
    assert study.prompts is not None
    changed = study.prompts.held_out[0].model_copy(update={"text": "another wording"})
    other = study.model_copy(
        update={"prompts": study.prompts.model_copy(update={"held_out": (changed, *study.prompts.held_out[1:])})}
    )
    first, second = (
        read_json(freeze(each, tmp_path / name).path)["prompts"] for each, name in ((study, "one"), (other, "two"))
    )
    assert first["held_out"]["ids"] == second["held_out"]["ids"]
    assert first["held_out"]["sha256"] != second["held_out"]["sha256"]
    assert first["attribution"] == second["attribution"]


def test_alpha_star_is_frozen_by_its_rule_until_surface_is_done_and_then_by_its_value(tmp_path: Path) -> None:
    study = without_organism(tmp_path)
    before = read_json(freeze(study, tmp_path / "before").path)["alpha_star"]
    assert (before["surface_done"], before["value"], before["alphas"]) == (False, None, [0.0, 1.0, 2.0])
    finished_surface(study, tmp_path / "after", 1.0)
    assert {state.name: state.state for state in states(study, tmp_path / "after")}["surface"] == "done"
    after = read_json(freeze(study, tmp_path / "after").path)["alpha_star"]
    assert (after["surface_done"], after["value"]) == (True, 1.0)
    stale = study.model_copy(update={"surface": study.surface.model_copy(update={"samples": 7})})
    finished_surface(study, tmp_path / "stale", 1.0)
    assert read_json(freeze(stale, tmp_path / "stale").path)["alpha_star"]["value"] is None


def test_the_same_registration_is_found_and_keeps_its_date(tmp_path: Path) -> None:
    study = without_organism(tmp_path)
    first = freeze(study, tmp_path / "run")
    held = first.path.read_bytes()
    assert freeze(study, tmp_path / "run") == first._replace(was_there=True)
    assert first.path.read_bytes() == held


def test_another_registration_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    frozen = freeze(without_organism(tmp_path), tmp_path / "run")
    held = frozen.path.read_bytes()
    with pytest.raises(RequestError, match="registers something else") as error:
        freeze(without_organism(tmp_path, margin=0.3), tmp_path / "run")
    assert "choose a new folder with --out" in str(error.value)
    (tmp_path / "pool.jsonl").write_text('{"text": "two"}\n')
    with pytest.raises(RequestError, match=r"\(references\.data\.files\.pool\.jsonl\)"):
        freeze(Study.model_validate(read_json(frozen.path)["config"]), tmp_path / "run")
    assert frozen.path.read_bytes() == held


def test_a_tampered_file_registers_nothing(tmp_path: Path) -> None:
    study = without_organism(tmp_path)
    frozen = freeze(study, tmp_path / "run")
    write_json(frozen.path, {**read_json(frozen.path), "date": "2001-01-01T00:00:00+00:00"})
    with pytest.raises(RequestError, match="its hash is broken"):
        freeze(study, tmp_path / "run")


@pytest.mark.parametrize("left", ["begun.json", "journal.jsonl", "done.json"])
def test_a_registration_after_the_fact_is_refused(tmp_path: Path, left: str) -> None:
    study = without_organism(tmp_path)
    finished_surface(study, tmp_path / "run", 1.0)
    write_json(tmp_path / "run/artifacts/patch" / left, {})
    with pytest.raises(RequestError, match=f"{left} exists: the patch phase has begun, and a registration after the"):
        freeze(study, tmp_path / "run")
    assert not (tmp_path / "run" / FILE).exists()


def test_a_folder_of_another_study_or_of_other_files_is_refused(tmp_path: Path) -> None:
    study = without_organism(tmp_path)
    finished_surface(study, tmp_path / "run", 1.0)
    with pytest.raises(RequestError, match="holds the study fake, not other"):
        freeze(study.model_copy(update={"name": "other"}), tmp_path / "run")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("mine")
    with pytest.raises(RequestError, match=r"holds files but no study\.yaml"):
        freeze(study, tmp_path / "thesis")


def test_a_run_begins_in_a_folder_that_holds_a_registration_and_nothing_else(tmp_path: Path) -> None:
    study = without_organism(tmp_path)
    freeze(study, tmp_path / "run")
    (tmp_path / "run" / f"{FILE}.part").write_text("torn")
    assert open_run(tmp_path / "run", study, resume=False) is study
    (tmp_path / "run" / "notes.md").write_text("mine")
    with pytest.raises(RequestError, match="holds files but no study"):
        open_run(tmp_path / "run", study, resume=False)


def test_what_the_patch_phase_began_under_is_decided_by_its_first_start(tmp_path: Path) -> None:
    study, root = without_organism(tmp_path), tmp_path / "run"
    out = root / "artifacts" / "patch"
    assert begun_under(study, root, out) is None
    sha256 = freeze(study, root).sha256
    now = {"datablame": __version__, "references": references(study, root)}
    assert begun_under(study, root, out) == {"sha256": sha256, **now}
    # It began without one: what is registered later, by hand, is none.
    write_json(out / "begun.json", {})
    assert begun_under(study, root, out) == {"sha256": None, **now}
    # A start over keeps what the first one had, and says on which data it starts.
    write_json(root / BEGUN, {"sha256": sha256, "datablame": "0", "references": {}})
    (tmp_path / "pool.jsonl").write_text('{"text": "two"}\n')
    again = begun_under(study, root, out)
    assert again == {"sha256": sha256, "datablame": __version__, "references": references(study, root)}
    assert again["references"] != now["references"]


def test_a_study_that_departs_from_its_registration_hears_so_before_it_runs(tmp_path: Path) -> None:
    study = without_organism(tmp_path)
    assert departures(study, tmp_path / "run") == []
    freeze(study, tmp_path / "run")
    assert departures(study, tmp_path / "run") == []
    other = without_organism(tmp_path, margin=0.3)
    assert departures(other, tmp_path / "run") == ["patch.margin: registered 0.2, in this run 0.3"]


def preregistered(*words: str, out: Path) -> Any:
    return CliRunner().invoke(app, ["plan", *words, "--preregister", "--out", str(out)])


def test_people_get_path_and_hash_and_programs_json(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    study = without_organism(tmp_path)
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", by_alias=True, exclude_none=True)))
    first = preregistered(str(path), out=tmp_path / "run")
    assert first.exit_code == 0, first.exception
    held = read_json(tmp_path / "run" / FILE)
    assert first.stdout == f"{tmp_path / 'run' / FILE}\nSHA-256 {held['sha256']}\n"
    second = preregistered(str(path), "--json", out=tmp_path / "run")
    assert json.loads(second.stdout) == {
        "path": str(tmp_path / "run" / FILE),
        "sha256": held["sha256"],
        "date": held["date"],
        "was_there": True,
    }
    third = preregistered(str(path), "--set", "patch.margin=0.4", out=tmp_path / "run")
    assert isinstance(third.exception, RequestError)
    assert third.exception.exit_code == 2
    without = CliRunner().invoke(app, ["plan", str(path), "--out", str(tmp_path / "run")])
    assert isinstance(without.exception, RequestError)
    assert "add --preregister or drop --out" in str(without.exception)


def test_a_hopeless_design_is_registered_with_a_warning(tmp_path: Path) -> None:
    result = preregistered("smollm2", out=tmp_path / "run")
    assert result.exit_code == 0, result.exception
    assert "warning: patch.seeds: 1 for retrain is too few for a p value" in result.stderr
    assert (tmp_path / "run" / FILE).exists()


def test_a_run_is_warned_once_before_it_starts_and_not_when_patching_has_begun(tmp_path: Path) -> None:
    path, root = tmp_path / "study.yaml", tmp_path / "run"
    path.write_text(
        yaml.safe_dump(without_organism(tmp_path).model_dump(mode="json", by_alias=True, exclude_none=True))
    )
    assert preregistered(str(path), out=root).exit_code == 0
    words = ["run", str(path), "--out", str(root), "--set", "patch.seeds=[0]"]
    told = CliRunner().invoke(app, words)
    # It ends at once, for its checkpoints are none.
    assert isinstance(told.exception, RequestError)
    assert told.stderr.count("warning: patch.seeds: 1 for retrain is too few for a p value") == 1
    assert told.stderr.count("warning: not as pre-registered: patch.seeds: registered {") == 1
    assert told.stdout == ""
    assert "warning" not in CliRunner().invoke(app, [*words, "--resume", "--until", "surface"]).stderr
    write_json(root / "artifacts/patch/begun.json", {"fingerprint": ""})
    assert "warning" not in CliRunner().invoke(app, [*words, "--resume"]).stderr


def test_a_run_keeps_to_what_was_registered_and_its_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    small = ["organism.scale=0.02", "organism.planted=0", "scan.samples=1", "scan.prompts=3", "scan.focus=1"]
    small += ["surface.samples=2", "surface.held_out_samples=1", "surface.max_new_tokens=4", "scan.alphas=[0, 1]"]
    small += ["surface.alphas=[0, 1]", "attribute.top_k=1", "prefilter.candidates=5", "patch.size=5"]
    study, root = load_study("organism", small), tmp_path / "run"
    sha256 = freeze(study, root).sha256
    run_study(open_run(root, study, resume=False), root, execution=Execution(1, 1), progress=Silent())
    assert read_json(root / BEGUN)["sha256"] == sha256
    results = read_json(root / "final_results.json")
    assert results["preregistration"] | {"date": None} == {
        "status": "pre-registered",
        "hash": sha256,
        "date": None,
        "deviations": [],
    }
    assert set(run_study(study, root, execution=Execution(1, 1), progress=Silent()).values()) == {True}
    # A file that is changed afterwards makes the report again, and is found out.
    write_json(root / FILE, {**read_json(root / FILE), "date": "2001-01-01T00:00:00+00:00"})
    skipped = run_study(study, root, execution=Execution(1, 1), progress=Silent())
    assert [name for name, was_skipped in skipped.items() if not was_skipped] == ["report"]
    told = read_json(root / "final_results.json")["preregistration"]
    assert told["status"] == "deviates"
    assert "the hash is broken" in told["deviations"][0]["field"]
