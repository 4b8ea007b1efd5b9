"""The script for a machine with a card, at reduced sizes on a CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from card import PARTS

ROOT = Path(__file__).parent.parent


def card(out: Path, *words: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, the table and card.json; python3 is the Python of the tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", str(ROOT / "benchmarks" / "card.sh"), "--device", "cpu", "--reduced", "--out", str(out), *words]
    ended = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert (out / "card.md").read_text() == ended.stdout, ended.stderr
    content = (out / "card.json").read_text()
    for text in (content, ended.stdout):
        assert str(ROOT) not in text
        assert str(out) not in text
        assert socket.gethostname() not in text
    return ended.returncode, ended.stdout, json.loads(content)


def exact_names() -> list[str]:
    drawn = ["log-probability, nats a token", "outputs with other tokens"]
    compared = ["dot products over the norm", "norms, relative", "losses, relative"]
    checks = {"greedy": drawn, "sampled": drawn, "truncated": drawn, "gradients": compared}
    checks["training"] = ["losses of LoRA training, relative"]
    return [f"{family}, {name}: {what}" for family in ("Olmo2", "Llama") for name in checks for what in checks[name]]


def test_every_row_is_measured_and_what_must_be_exact_is(tmp_path: Path) -> None:
    code, table, kept = card(tmp_path, "--only", "machine", "exactness-float32")
    assert code == 0
    assert {key: kept[key] for key in ("device", "reduced")} == {"device": "cpu", "reduced": True}
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in kept["rows"]:
        by_part.setdefault(row["part"], []).append(row)
        assert row["seconds"] >= 0
        assert row["what"] in table
    assert list(by_part) == ["machine", "exactness-float32"]
    assert {row["what"]: row["measured"] for row in by_part["machine"]} == kept["machine"]
    assert kept["machine"]["missing packages"] == "none"
    *exact, peak = by_part["exactness-float32"]
    assert [row["what"] for row in exact] == exact_names()
    for row in exact:
        assert (row["dtype"], row["verdict"]) == ("float32", "pass")
        if row["what"].endswith("tokens"):
            assert row["allowed"] == "0"
        else:
            assert row["allowed"] == "0.0001"
            assert float(row["measured"]) <= 1e-4
    assert (peak["what"], peak["verdict"]) == ("peak memory", "measured")


def test_a_part_that_runs_out_of_time_is_a_row_and_exit_code_1(tmp_path: Path) -> None:
    code, _, kept = card(tmp_path, "--seconds", "4", "--only", "exactness-float32", "study")
    assert code == 1
    late, left = kept["rows"][-2:]
    assert (late["part"], late["what"], late["verdict"]) == ("exactness-float32", "out of time", "time-out")
    assert (left["part"], left["what"], left["verdict"]) == ("study", "not begun", "not run")


@pytest.mark.slow
def test_a_part_that_fails_is_a_row_with_its_last_line_and_the_next_part_runs(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card, so that asking for one does not fail")
    code, _, kept = card(tmp_path, "--device", "cuda", "--only", "exactness-float32", "exactness-float16")
    assert code == 1
    assert [(row["part"], row["verdict"], row["measured"]) for row in kept["rows"]] == [
        (part, "error", f"exit code 1: torch {torch.__version__} sees no card")
        for part in ("exactness-float32", "exactness-float16")
    ]


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path: Path) -> None:
    code, _, kept = card(tmp_path, "--seconds", "900")
    assert code == 0
    assert list(dict.fromkeys(row["part"] for row in kept["rows"])) == list(PARTS)
    assert {row["verdict"] for row in kept["rows"]} == {"pass", "measured"}
    bounded = [row for row in kept["rows"] if row["part"].startswith("exactness") and row["what"] in exact_names()]
    assert len(bounded) == 3 * len(exact_names())
