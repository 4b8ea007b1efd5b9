"""What a command prints of a run's verdict, and the exit code that it gives."""

import json
from pathlib import Path

import pytest
import typer

from datablame.cli.app import _print_outcome
from datablame.engine.files import write_json


@pytest.mark.parametrize("as_json", [True, False])
def test_invalid_alone_ends_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    for label, reason in (
        ("INVALID", "Gate failed: exposure: x."),
        ("FAILURE", "No [bold]rise."),
        ("INCONCLUSIVE", "y"),
    ):
        decided = {"label": label, "headline": "Found [b].", "reasons": [reason], "numbers": {}}
        results = {"verdict": decided, "findings": [], "patching": []}
        write_json(tmp_path / "final_results.json", results)
        if label == "INVALID":
            with pytest.raises(typer.Exit) as ended:
                _print_outcome(tmp_path, {"report": False}, as_json)
            assert ended.value.exit_code == 1
        else:
            _print_outcome(tmp_path, {"report": False}, as_json)
        out = capsys.readouterr().out
        if as_json:
            assert json.loads(out)["verdict"]["label"] == label
        else:
            assert out.splitlines()[:2] == [f"verdict: {label}. Found [b].", f"- {reason}"]


def test_a_run_without_its_report_has_no_verdict_to_fail(tmp_path: Path) -> None:
    _print_outcome(tmp_path, {"patch": False}, as_json=True)
