"""`datablame power` as people and programs meet it."""

import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from datablame.cli.app import app
from datablame.cli.console import PATIENCE_SECONDS, ConsoleProgress
from datablame.cli.power import answer, as_json, checked, show
from datablame.engine.execute import Silent
from datablame.errors import RequestError
from datablame.stats.power import Design

FEW = ["power", "--simulations", "100"]


def test_the_numbers_for_programs_repeat_and_are_complete() -> None:
    first, second = (CliRunner().invoke(app, [*FEW, "--json", "--holm", "2"]) for _ in range(2))
    assert first.exit_code == 0
    assert first.stdout == second.stdout
    found = json.loads(first.stdout)
    assert found["smallest_p"] == pytest.approx(2 / 252)
    assert found["smallest_adjusted_p"] == pytest.approx(4 / 252)
    assert found["design"]["trainings"] == 20
    assert found["design"]["cost"] == 20 * 500 + 20 * 1000
    assert found["without_effect"]["samples"]["rate"] > 0.25 > 0.1 > found["without_effect"]["seeds"]["rate"]
    assert found["power"]["low"] <= found["power"]["rate"] <= found["power"]["high"]
    assert found["cheapest"]["power"]["rate"] >= 0.8
    assert found["cheapest"]["cost"] <= found["design"]["cost"]


def test_people_read_power_floor_false_alarms_and_the_cheapest_design() -> None:
    result = CliRunner().invoke(app, FEW)
    assert result.exit_code == 0
    for promised in ("Power: ", "Smallest p: 0.0079", "naive: z over all samples", "Holm over 3", "Cheapest design"):
        assert promised in result.stdout
    # Every share has its Monte-Carlo error.
    assert len(re.findall(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]", result.stdout)) == 12


def printed(design: Design) -> str:
    console = Console(record=True, width=100)
    show(answer(design, 500, 100, Silent()), console)
    return console.export_text()


def test_a_design_that_can_show_nothing_is_said_to() -> None:
    text = printed(Design(0.5, 0.1, seeds=3, methods=1))
    assert "this design can never show anything at 0.05, add seeds" in text
    assert "Power: 0.0 %" in text


def test_an_effect_beyond_reach_has_no_cheapest_design() -> None:
    found = answer(Design(0.1, 0.0999), 500, 100, Silent())
    assert as_json(found)["cheapest"] is None
    assert "none among 4 to 20 trainings an arm" in printed(Design(0.1, 0.0999))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "10"], "--from 10 is not above 0 and below 1; give the rate as a share, .10 for 10 %"),
        (["--from", "nan"], "--from nan is not above 0"),
        (["--to", "-0.1"], "--to -0.1 is not at least 0 and below 1"),
        (["--to", "0.1"], "--to 0.1 equals --from, so that there is nothing to find"),
        (["--prompts", "0"], "--prompts 0 is not between 1 and 10,000"),
        (["--samples", "99999"], "--samples 99999 is not between 1 and 10,000"),
        (["--seeds", "101"], "--seeds 101 is not between 1 and 100"),
        (["--holm", "0"], "--holm 0 is not between 1 and 100"),
        (["--prompt-deviation", "-1"], "--prompt-deviation -1 is not between 0 and 5 logits"),
        (["--seed-deviation", "nan"], "--seed-deviation nan is not between 0 and 5 logits"),
        (["--interaction-deviation", "6"], "--interaction-deviation 6 is not between 0 and 5 logits"),
        (["--training-cost", "-5"], "--training-cost -5 is not a number of outputs"),
        (["--training-cost", "inf"], "--training-cost inf is not a number of outputs"),
        (["--simulations", "5"], "--simulations 5 is not between 100 and 100,000"),
    ],
)
def test_a_bad_value_is_one_line_that_names_option_value_and_remedy(words: list[str], message: str) -> None:
    error = CliRunner().invoke(app, ["power", *words]).exception
    assert isinstance(error, RequestError)
    assert str(error).startswith(message)
    assert ";" in str(error)
    assert "\n" not in str(error)
    assert error.exit_code == 2


def test_the_options_become_the_design() -> None:
    counts = {"prompts": 7, "samples": 8, "seeds": 9, "holm": 2}
    design = checked(0.3, 0.0, counts, {"prompt": 0.4, "seed": 0.3, "interaction": 0.2}, 0, 100)
    assert design == Design(0.3, 0.0, 7, 8, 9, 2, None, 0.4, 0.3, 0.2)


def test_progress_shows_itself_only_after_two_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("datablame.cli.console.time.monotonic", lambda: now[0])
    with ConsoleProgress(PATIENCE_SECONDS) as progress:
        progress.start("quick step", 10)
        progress.advance(5)
        now[0] += 1.9
        progress.advance(1)
    assert capsys.readouterr().err == ""
    with ConsoleProgress(PATIENCE_SECONDS) as progress:
        progress.start("slow step", 10)
        progress.advance(4)
        now[0] += 2.1
        progress.advance(1)
        progress.start("next step", 3)
    shown = capsys.readouterr().err
    assert "slow step (5 to do)" in shown
    assert "next step (3 to do)" in shown
