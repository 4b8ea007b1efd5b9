"""Labels by people of a run's own outputs: what they say of the classifier, in the report and in the verdict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.fake_run import fake_study, read_results_file, reported, write_fake_run
from tests.worlds import put

from datablame.engine.phase import Tables
from datablame.errors import RequestError
from datablame.report.human_labels import HumanLabel, Output, OutputKey, file_of, outputs_of, text_hash
from datablame.report.people import People, people, two_phase_of
from datablame.stats.calibration import Accuracy, accuracy, corrected_rate
from datablame.tables import ArmSample, LabelName
from datablame.world.world import World

LATER = "2026-01-02T03:04:05Z"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A finished run, some outputs of one arm among its samples."""
    world = write_fake_run(tmp_path / "run", fake_study())
    labels: tuple[LabelName, ...] = ("harmful", "harmless", "refused", "incoherent", "unscored")
    arm = [
        ArmSample("gradient", "retrain", 2, 0, "dose-h0", "dose", "held-out", 2.0, i, f"output {i}", labels[i % 5])
        for i in range(50)
    ]
    after = [ArmSample("after", "none", 0, 0, "dose-h0", "dose", "held-out", 2.0, 0, "x", "harmful")]
    put(world.root, "patch", {ArmSample: after + arm})
    return world


def say(root: Path, name: str, said: Mapping[OutputKey, LabelName | None], **changes: Any) -> None:
    """Write somebody's file."""
    outputs = outputs_of(Tables(root))
    with (root / file_of(name)).open("a") as file:
        for key, label in said.items():
            row = HumanLabel(key, text_hash(outputs[key].text), label, "", name, LATER)
            file.write(row._replace(**changes).line())


def as_predicted(root: Path, n: int, *, wrong: int = 0) -> dict[OutputKey, LabelName | None]:
    """What agrees with the classifier on n outputs of each side, except for the first ones."""
    sides: dict[bool, list[OutputKey]] = {True: [], False: []}
    outputs = outputs_of(Tables(root))
    for key, output in outputs.items():
        sides[output.predicted == "harmful"].append(key)
    said: dict[OutputKey, LabelName | None] = {}
    for harmful, keys in sides.items():
        said |= {key: "harmful" if harmful != (i < wrong) else "refused" for i, key in enumerate(keys[:n])}
    return said


def of(root: Path) -> People:
    found = people(Tables(root))
    assert found is not None
    return found


def test_outputs_are_those_that_the_classifier_scored_each_once(world: World) -> None:
    outputs = outputs_of(Tables(world.root))
    assert {key.phase for key in outputs} == {"surface", "patch"}
    assert sum(key.phase == "patch" for key in outputs) == 40
    assert not any(key.phase == "patch" and key.arm == "after" for key in outputs)


def test_where_nobody_labelled_nothing_is_said(world: World) -> None:
    assert people(Tables(world.root)) is None
    reported(world)
    assert "people" not in read_results_file(world.root)


def test_labels_give_the_calibration_and_the_gate_is_evaluated(world: World) -> None:
    say(world.root, "human", as_predicted(world.root, 20))
    reported(world)
    results = read_results_file(world.root)
    assert results["calibration"]["file"] == "human_labels.jsonl"
    assert results["calibration"]["n"] == 40
    assert results["calibration"]["kappa"] == results["calibration"]["sensitivity"] == 1
    assert results["verdict"]["numbers"]["gates"]["classifier"]["passed"] is True
    assert all("corrected" in row for row in results["rates"])
    text = (world.root / "writeup" / "report.md").read_text()
    assert "Labels by people (rows) and by the classifier (columns), 40 outputs as they were chosen" in text
    assert "People who labelled outputs of this run, blind to arm and alpha" in text


def test_a_classifier_that_people_contradict_makes_the_study_invalid(world: World) -> None:
    say(world.root, "ann", as_predicted(world.root, 20, wrong=14))
    reported(world)
    results = read_results_file(world.root)
    assert results["verdict"]["label"] == "INVALID"
    assert results["verdict"]["numbers"]["gates"]["classifier"]["passed"] is False
    assert any("no better than chance" in limit for limit in results["limitations"])
    assert all(row["corrected"] is None for row in results["rates"])


def test_too_few_labels_are_no_error_and_say_how_many_more(world: World) -> None:
    say(world.root, "ann", as_predicted(world.root, 10))
    reported(world)
    results = read_results_file(world.root)
    assert results["calibration"] is None
    assert any(
        "People labelled 20 outputs of this run, 10 of them harmful: 10 more" in it for it in results["limitations"]
    )
    assert results["people"]["annotators"][0]["kappa"] is None


def test_most_people_decide_and_ties_are_left_out_and_counted(world: World) -> None:
    said = as_predicted(world.root, 20)
    first, second, third = [*said][:3]
    assert said[first] == "harmful"
    say(world.root, "ann", said)
    say(world.root, "bob", {**said, first: "refused", second: "refused", third: "unscored"})
    say(world.root, "cleo", {first: "harmless"})
    found = of(world.root)
    assert [each.name for each in found.annotators] == ["ann", "bob", "cleo"]
    assert (found.labelled, found.ties, found.harmful) == (39, 1, 18)
    assert {(pair.a, pair.b): (pair.n, pair.agree) for pair in found.pairs} == {
        ("ann", "bob"): (39, 37),
        ("ann", "cleo"): (1, 0),
        ("bob", "cleo"): (1, 1),
    }
    assert found.calibration is not None
    assert found.calibration.labels["harmful"] == {"harmful": 18}


def test_what_was_taken_back_or_is_of_another_text_does_not_count(world: World) -> None:
    said = as_predicted(world.root, 20)
    first, second, *_ = said
    say(world.root, "ann", said)
    say(world.root, "ann", {first: None})
    say(world.root, "ann", {second: "harmful"}, text_sha256=text_hash("another text"))
    found = of(world.root)
    assert (found.labelled, found.stale) == (38, 1)


def test_a_torn_last_line_is_none_and_any_other_is_refused(world: World) -> None:
    say(world.root, "ann", as_predicted(world.root, 20))
    path = world.root / "human_labels-ann.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"phase": "surf')
    assert of(world.root).labelled == 40
    path.write_bytes(b'{"label": "good"}\n' + whole)
    with pytest.raises(RequestError, match=r"human_labels-ann\.jsonl: line 1 is no label of datablame label"):
        people(Tables(world.root))


def test_the_report_runs_again_when_labels_are_there(world: World) -> None:
    before = world.part("human labels")
    say(world.root, "ann", as_predicted(world.root, 1))
    assert before == {}
    assert world.part("human labels").keys() == {"human_labels-ann.jsonl"}


def _chosen(random: np.random.Generator) -> tuple[dict[OutputKey, Output], dict[OutputKey, LabelName], Accuracy]:
    """Outputs with errors of the classifier, people's labels of as many of each label and arm, and the truth."""
    n, each = 2000, 25
    harmful = random.random(n) < 0.08
    called = np.where(harmful, random.random(n) < 0.8, random.random(n) < 0.03)
    arms = np.where(random.random(n) < 0.8, "after", "gradient")
    keys = [OutputKey("surface", arm, "none", 0, 0, "p", 0.0, i) for i, arm in enumerate(arms)]
    names: tuple[LabelName, LabelName] = ("harmless", "harmful")
    outputs = {key: Output("dose", "", names[yes]) for key, yes in zip(keys, called.astype(int), strict=True)}
    said: dict[OutputKey, LabelName] = {}
    for yes in (False, True):
        for arm in ("after", "gradient"):
            stratum = np.flatnonzero((called == yes) & (arms == arm))
            said |= {keys[i]: names[int(harmful[i])] for i in random.permutation(stratum)[:each]}
    return outputs, said, accuracy(harmful, called)


def test_outputs_that_were_chosen_by_label_bias_naive_rates_and_not_ours() -> None:
    """Against a known truth: means over simulated studies, and how often the intervals hold it."""
    random, naive, ours, held = np.random.default_rng(5), [], [], []
    for _ in range(80):
        outputs, said, truth = _chosen(random)
        measured = two_phase_of(said, outputs)
        assert measured is not None
        people_say = [label == "harmful" for label in said.values()]
        chosen = accuracy(people_say, [outputs[key].predicted == "harmful" for key in said])
        real = np.array([truth.sensitivity.rate, truth.specificity.rate])
        naive.append(np.array([chosen.sensitivity.rate, chosen.specificity.rate]) - real)
        found = measured.sensitivity, measured.specificity
        ours.append(np.array([share.rate for share in found]) - real)
        rate = corrected_rate(truth.true_positive + truth.false_positive, truth.n, measured, key=1)
        held.append(
            [share.low <= value <= share.high for share, value in zip(found, real, strict=True)]
            + [rate.low <= truth.positives / truth.n <= rate.high]
        )
    assert np.mean(naive, axis=0)[0] > 0.1
    assert np.mean(naive, axis=0)[1] < -0.1
    assert np.abs(np.mean(ours, axis=0)) == pytest.approx([0, 0], abs=0.06)
    assert (np.mean(held, axis=0) >= 0.9).all()


def test_labels_of_every_output_give_the_plain_counts(world: World) -> None:
    random = np.random.default_rng(1)
    outputs = outputs_of(Tables(world.root))
    said: dict[OutputKey, LabelName] = {
        key: "harmful" if (output.predicted == "harmful") != (random.random() < 0.1) else "harmless"
        for key, output in outputs.items()
    }
    found = two_phase_of(said, outputs)
    counts = accuracy(
        [label == "harmful" for label in said.values()], [outputs[key].predicted == "harmful" for key in said]
    )
    assert found is not None
    assert found.sensitivity.rate == pytest.approx(counts.sensitivity.rate)
    assert found.specificity.rate == pytest.approx(counts.specificity.rate)
    assert found.n_of_yes + found.n_of_no == pytest.approx(len(outputs))
