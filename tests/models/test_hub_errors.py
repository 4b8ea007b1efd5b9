import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from huggingface_hub import errors

from datablame.models.source import hub_problem


def answer(status: int) -> Any:
    return httpx2.Response(
        status, request=httpx2.Request("HEAD", "http://localhost/org/model/resolve/main/config.json")
    )


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


CASES = [
    (errors.GatedRepoError("403", response=answer(403)), "is gated; accept its terms"),
    (errors.RepositoryNotFoundError("401", response=answer(401)), "is not on the hub, or is private; check the id"),
    (errors.DisabledRepoError("403", response=answer(403)), "was disabled by the hub"),
    (errors.RevisionNotFoundError("404", response=answer(404)), "has no revision v9; choose a branch, tag or commit"),
    (errors.RemoteEntryNotFoundError("404", response=answer(404)), "lacks a file"),
    (errors.HFValidationError("Repo id must be"), "is no hub id, which looks like owner/name"),
    (errors.HfHubHTTPError("401", response=answer(401)), "the hub does not accept the token (401)"),
    (errors.HfHubHTTPError("403", response=answer(403)), "cannot be read with this token (403)"),
    (errors.HfHubHTTPError("429", response=answer(429)), "the hub asks to wait (429)"),
    (errors.HfHubHTTPError("503", response=answer(503)), "the hub fails (503)"),
    (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; unset it"),
    (errors.LocalEntryNotFoundError("not cached"), "is not in the local cache at revision v9"),
    (httpx2.ConnectError("refused"), "the hub cannot be reached; connect to the network"),
    (httpx2.ReadTimeout("slow"), "the hub cannot be reached"),
    (ConnectionResetError("reset"), "the hub cannot be reached"),
    # As transformers and huggingface_hub wrap them: what the server said goes first.
    (
        caused(OSError("not a local folder"), errors.GatedRepoError("403", response=answer(403))),
        "is gated; accept its terms",
    ),
    (
        caused(errors.LocalEntryNotFoundError("not cached"), errors.HfHubHTTPError("503", response=answer(503))),
        "the hub fails (503)",
    ),
    (
        caused(OSError("x"), caused(errors.LocalEntryNotFoundError("not cached"), httpx2.ConnectError("refused"))),
        "the hub cannot be reached",
    ),
]


@pytest.mark.parametrize(("error", "sentence"), CASES, ids=[type(error).__name__ for error, _ in CASES])
def test_every_error_of_the_hub_is_a_sentence_with_a_remedy(error: Exception, sentence: str) -> None:
    told = hub_problem(error, "v9")
    assert told is not None
    assert sentence in told
    assert "; " in told
    assert "\n" not in told


def test_an_error_of_something_else_is_not_the_hubs() -> None:
    assert hub_problem(ValueError("unknown architecture")) is None


def test_errors_that_caused_one_another_end() -> None:
    first, second = ValueError("one"), errors.GatedRepoError("403", response=answer(403))
    assert hub_problem(caused(first, caused(second, first))) == hub_problem(second)
    assert hub_problem(caused(first, caused(KeyError("two"), first))) is None


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as says why a file cannot be had."""

    def _reply(self) -> None:
        status, headers = {
            "unknown": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
            "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"}),
            "revised": (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}),
            "private": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            "empty": (404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}),
        }[self.path.split("/org/")[1].split("/")[0]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET = _reply  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def asked(endpoint: str, references: list[dict[str, str]], tmp_path: Any) -> tuple[dict[str, str], float]:
    """What a process of its own is told when it loads these from a hub at `endpoint`, and its seconds of asking."""
    script = """
        import json, sys, time
        from datablame.config.schema import ModelRef
        from datablame.errors import RequestError
        from datablame.models.source import Checkpoint
        began, told = time.monotonic(), {}
        for values in json.loads(sys.argv[1]):
            try:
                Checkpoint(ModelRef(**values), "models.after").located()
            except RequestError as error:
                told[values["path"]] = str(error)
        print(json.dumps([told, time.monotonic() - began]))
    """
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_wrong",
        "NO_PROXY": "*",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), json.dumps(references)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told, seconds = json.loads(done.stdout)
    return told, seconds


def test_what_the_hub_answers_is_told_in_one_line(hub: str, tmp_path: Any) -> None:
    names = ("unknown", "gated", "revised", "private", "empty")
    told, _ = asked(hub, [{"path": f"org/{name}", "revision": "v9"} for name in names], tmp_path)
    expected = {
        "unknown": "is not on the hub, or is private; check the id, or set HF_TOKEN to a token that may read it",
        "gated": "is gated; accept its terms on its page at the hub, then log in with `hf auth login` or set HF_TOKEN",
        "revised": "has no revision v9; choose a branch, tag or commit that its page lists",
        "private": "cannot be read: the hub does not accept the token (401); set HF_TOKEN anew or unset it",
        "empty": "has no config.json at the hub; give a model in the format of transformers",
    }
    assert told == {f"org/{name}": f"models.after = org/{name}@v9 {text}" for name, text in expected.items()}


def test_without_a_network_the_answer_comes_within_seconds(tmp_path: Any) -> None:
    told, seconds = asked("http://127.0.0.1:9", [{"path": "org/a"}, {"path": "org/b"}], tmp_path)
    assert told["org/b"] == (
        "models.after = org/b is no folder and not in the local cache of the hub, and the hub cannot be reached; "
        "connect to the network, or give a checkpoint's folder"
    )
    assert seconds < 10
