"""The doctor is right about the machine it is on, says what to do, and tells no secret."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from datablame.cli import doctor
from datablame.cli.doctor import Check, can_run, examine
from datablame.engine.machine import Card, cards, cores, memory_bytes

SECRET = "sk-ant-secret-0123456789"


def named(checks: list[Check], name: str) -> Check:
    (found,) = (check for check in checks if check.name == name)
    return found


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host answers: a port of this machine on which nothing listens."""
    for variable in ("HF_ENDPOINT", "ANTHROPIC_BASE_URL"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("HF_HUB_OFFLINE", "ANTHROPIC_API_KEY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A host that answers 404 to everything, and the headers that it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", seen
        running.shutdown()


@pytest.mark.usefixtures("nobody")
def test_this_machine_without_a_network_can_run_with_warnings(tmp_path: Path) -> None:
    import torch

    checks = examine(tmp_path)
    assert can_run(checks)
    assert named(checks, "Python").status == "ok"
    assert named(checks, "device cpu").found.endswith(f"{cores()} cores")
    assert f"torch {torch.__version__}" in named(checks, "packages").found
    assert named(checks, "types on cpu") == Check("types on cpu", "ok", "float32, float16, bfloat16")
    assert ("none" in named(checks, "graphics card").found) is not torch.cuda.is_available()
    assert named(checks, "hub").status == named(checks, "Anthropic API").status == "warning"
    assert all(check.remedy for check in checks if check.status != "ok")


@pytest.mark.usefixtures("nobody")
def test_a_host_that_answers_with_an_error_is_reached_and_gets_no_key(
    tmp_path: Path, server: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, seen = server
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    checks = examine(tmp_path)
    assert named(checks, "Anthropic API") == Check("Anthropic API", "ok", f"{address} answers (no key was sent)")
    assert len(seen) == 1
    assert SECRET not in str(seen)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "address",
    [
        "http://me:hidden-word@127.0.0.1:9/hidden-word?token=hidden-word",
        "http://me:hidden-word@127.0.0.1:99999",
        "http://hidden-word:hidden-word",
        "file:///hidden-word",
        "hidden-word",
    ],
)
def test_neither_the_key_nor_a_secret_in_an_address_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
    monkeypatch.setenv("HF_ENDPOINT", address)
    checks = examine(tmp_path)
    assert named(checks, "ANTHROPIC_API_KEY").status == "ok"
    assert named(checks, "Anthropic API").status == "warning"
    told = json.dumps(checks)
    assert "hidden-word" not in told
    assert not any(SECRET[start : start + 6] in told for start in range(len(SECRET) - 5))


@pytest.mark.usefixtures("nobody")
def test_a_key_that_no_request_can_carry_is_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", f"{SECRET}\n{SECRET}")
    check = named(examine(tmp_path), "ANTHROPIC_API_KEY")
    assert (check.status, check.remedy) == ("failed", "export it again, or unset it: keywords then classify")
    assert "holds a line break" in check.found
    assert SECRET not in str(check)
    monkeypatch.setenv("ANTHROPIC_API_KEY", f" {SECRET}\n")
    assert named(examine(tmp_path), "ANTHROPIC_API_KEY").status == "ok"


def test_an_offline_hub_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in named(examine(tmp_path), "hub").found


@pytest.mark.usefixtures("nobody")
def test_what_cannot_be_written_fails_and_ends_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    checks = examine(tmp_path / "file" / "run")
    assert named(checks, "run folder").status == "failed"
    assert not can_run(checks)
    words = [sys.executable, "-m", "datablame", "doctor", "--json", "--out", "file/run"]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 1
    assert json.loads(result.stdout)["can_run"] is False


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "_TRIED", ())
    assert list(doctor._packages()) == [
        Check("packages", "failed", "missing: no-such-package", "pip install no-such-package")
    ]


def test_a_full_disk_fails_and_a_small_one_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((10**8, "failed"), (5 * 10**9, "warning"), (10**11, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert doctor._disk("cache", tmp_path / "new" / "folder", "set DATABLAME_CACHE").status == status


def test_memory_is_the_smaller_of_machine_and_container() -> None:
    import psutil

    assert 0 < memory_bytes() <= psutil.virtual_memory().total


def test_cards_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    lines = "0, Tesla T4, 15360, 12", "1, NVIDIA A100, 40GB, 40960, [N/A]", "2, broken, [N/A], 0"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    first, second = Card(0, "Tesla T4", 15360 << 20, 12 << 20), Card(1, "NVIDIA A100, 40GB", 40960 << 20, 0)
    assert cards() == [first, second]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert cards() == [second]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert cards() == []
