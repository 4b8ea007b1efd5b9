"""Dataset repositories on loopback that speak as much of the hub's protocol as `datasets` needs to read one."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"


class Hub(NamedTuple):
    """Where the server listens, and every (method, path) that it was asked for."""

    endpoint: str
    asked: list[tuple[str, str]]


@contextmanager
def hub(repositories: dict[str, Path], gated: frozenset[str] = frozenset(), *, down: bool = False) -> Iterator[Hub]:
    """Serve folders as datasets under their names; a gated one shows its files' names and refuses their contents.

    `down` makes every answer 503.
    """
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(body=True, sent=sent)

        def _answer(self, *, body: bool, sent: bytes = b"") -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append((self.command, path))
            if down:
                return self._send(503, b"{}")
            api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
            file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            found = api or file
            if found is None:
                return self._send(404, b"{}")
            folder = repositories.get(found[1])
            if folder is None:
                return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            revision = api[3] if api else file[2] if file else None
            if revision not in (None, "main", "v1", COMMIT):
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if api:
                return self._send(200, json.dumps(self._described(folder, api, sent)).encode())
            assert file is not None
            if found[1] in gated and self.headers.get("Authorization") is None:
                return self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
            here = folder / file[3]
            if not here.is_file():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return self._file(here.read_bytes(), body=body)

        def _described(self, folder: Path, api: Any, sent: bytes) -> Any:
            if api[2] == "tree":
                under = folder / (api[4] or "")
                found = under.rglob("*") if "recursive=true" in self.path.lower() else under.glob("*")
                return [_entry(folder, str(each.relative_to(folder))) for each in sorted(found)]
            if api[2] == "paths-info":
                paths = (
                    json.loads(sent)["paths"] if sent.startswith(b"{") else re.findall(r"paths=([^&]+)", sent.decode())
                )
                return [_entry(folder, name) for name in map(unquote, paths) if (folder / name).exists()]
            names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            return {"id": api[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names], "tags": []}

        def _file(self, content: bytes, *, body: bool) -> None:
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if part is None:
                return self._send(200, content, headers, body=body)
            first, last = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[first : last + 1], headers, body=body)

        def _send(
            self, status: int, content: bytes, headers: dict[str, str] | None = None, *, body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    content = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
