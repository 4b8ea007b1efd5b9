"""A private dataset of the hub, by the real SDK against a hub on loopback."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from datablame.errors import PhaseError, RequestError
from datablame.export import export
from datablame.export.hub import check_repository, upload
from datablame.world import World

REPO = "me/my-run"


class Hub:
    """One dataset, as much of the hub's protocol as creating and committing needs; `fails` answers a path's end."""

    def __init__(self) -> None:
        self.private: bool | None = None
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.fails: dict[str, int] = {}
        self.url = ""

    def answer(self, method: str, path: str, sent: bytes) -> tuple[int, Any]:
        self.asked.append((method, path))
        for end, status in self.fails.items():
            if path.endswith(end):
                return status, {"error": "as the test says"}
        dataset: dict[str, Any] = {"id": REPO, "private": self.private, "sha": "0" * 40, "tags": []}
        match method, path:
            case "POST", "/api/repos/create":
                if self.private is not None:
                    return 409, {"error": "exists", "url": f"{self.url}/datasets/{REPO}"}
                asked = json.loads(sent)
                self.private = asked.get("private", asked.get("visibility") == "private")
                self.files[".gitattributes"] = b"*.parquet filter=lfs\n"
                return 200, {"url": f"{self.url}/datasets/{REPO}", "id": REPO}
            case "GET", _ if self.private is None:
                return 401, {"error": "Repository not found"}
            case "GET", "/api/datasets/me/my-run":
                return 200, dataset | {"siblings": [{"rfilename": name} for name in self.files]}
            case "GET", "/api/datasets/me/my-run/revision/main":
                return 200, dataset | {"siblings": []}
            case "POST", "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}
            case "POST", "/api/datasets/me/my-run/preupload/main":
                names = [each["path"] for each in json.loads(sent)["files"]]
                return 200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            case "POST", "/api/datasets/me/my-run/commit/main":
                for line in map(json.loads, sent.splitlines()):
                    if line["key"] == "file":
                        self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return 200, {"commitUrl": f"{self.url}/datasets/{REPO}/commit/{'1' * 40}", "commitOid": "1" * 40}
        return 404, {"error": f"{method} {path}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._reply()

        def do_POST(self) -> None:
            self._reply()

        def _reply(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "/datasets/" in self.path:
                hub.tokens.add(self.headers.get("Authorization"))
            status, body = hub.answer(self.command, self.path.partition("?")[0], sent)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    huggingface_hub.close_session()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\nconfigs: []\n---\n# run\n")
    (tmp_path / "surface_samples.parquet").write_bytes(b"PAR1 rows PAR1")
    return tmp_path


def test_a_folder_is_a_private_dataset_in_one_commit(hub: Hub, folder: Path) -> None:
    check_repository(REPO)
    assert upload(folder, REPO) == f"{hub.url}/datasets/{REPO}"
    assert hub.private is True
    del hub.files[".gitattributes"]
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sum(path.endswith("/commit/main") for _, path in hub.asked) == 1
    assert hub.tokens == {"Bearer hf_of_the_test"}


def test_what_is_uploaded_is_redacted_and_has_a_card(hub: Hub, surfaced: World) -> None:
    done = export(surfaced.root, "hub", repo=REPO)
    assert (done.where, done.files, done.redacted) == (f"{hub.url}/datasets/{REPO}", 3, True)
    card = hub.files["README.md"].decode()
    assert "config_name: surface_samples" in card
    assert f"- Redacted: {done.hidden} texts are hidden" in card
    assert "No licence is stated" in card
    assert not [name for name, content in hub.files.items() if b"secret" in content]
    texts = pq.read_table(io.BytesIO(hub.files["surface_samples.parquet"]))["text"].to_pylist()
    assert all(text.startswith("[hidden: ") for text in texts)


def test_nothing_is_sent_to_a_dataset_that_is_public_or_holds_files(hub: Hub, folder: Path) -> None:
    for private, files, why in ((False, {}, "is public"), (True, {"theirs.csv": b""}, "holds theirs.csv already")):
        hub.private, hub.files = private, dict(files)
        with pytest.raises(RequestError, match=why):
            upload(folder, REPO)
        assert hub.files == files


def test_an_empty_private_dataset_that_a_failed_upload_left_is_filled(hub: Hub, folder: Path) -> None:
    hub.fails = {"/commit/main": 403}
    with pytest.raises(RequestError, match="--repo me/my-run: the hub answers 403; give a token"):
        upload(folder, REPO)
    assert set(hub.files) == {".gitattributes"}
    hub.fails = {}
    upload(folder, REPO)
    assert "README.md" in hub.files


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (401, RequestError, "the hub answers 401; give a token"),
        (500, PhaseError, r"the hub fails \(500\); try again later"),
    ],
)
def test_a_hub_that_refuses_or_fails_is_one_line(
    hub: Hub, folder: Path, status: int, kind: type[Exception], told: str
) -> None:
    hub.fails = {"/create": status}
    with pytest.raises(kind, match=f"--repo me/my-run: {told}"):
        upload(folder, REPO)
    assert not hub.files


def test_a_hub_that_does_not_answer_is_named(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PhaseError, match=r"the hub fails \(ConnectError\)"):
        upload(folder, REPO)


def test_what_cannot_be_uploaded_is_refused_before_anything_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="--repo my run is no OWNER/NAME"):
        check_repository("my run")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE is set"):
        check_repository(REPO)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(RequestError, match="needs a token of the hub"):
        check_repository(REPO)
    assert not hub.asked
