"""Who is served: this machine, the browser that had the token, and nobody else's page."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.shell import asked
from tests.view.serving import Served, serving


@pytest.fixture(scope="module")
def viewed(folder: Path) -> Iterator[Served]:
    with serving("view", folder) as served:
        yield served


@pytest.fixture(scope="module")
def cookie(viewed: Served) -> str:
    return viewed.cookie()


@pytest.fixture(scope="module")
def labelled(sampled: Path) -> Iterator[Served]:
    with serving("label", sampled) as served:
        yield served


def test_without_a_token_or_with_a_wrong_one_nothing_is_shown(viewed: Served, cookie: str) -> None:
    for path in ("/", "/?token=", "/?token=wrong", "/run/fake/", "/style.css", "/nowhere"):
        answer = viewed.ask(path)
        assert (answer.status, answer.text) == (403, "Open the address that datablame printed; its token works once.")
    assert viewed.ask("/", cookie=f"datablame-{viewed.port}=wrong").status == 403


def test_the_token_works_once_and_leaves_the_address(folder: Path) -> None:
    with serving("view", folder) as served:
        assert served.ask(f"/?token={served.token}", method="HEAD").status == 403
        first = served.ask(f"/?token={served.token}")
        assert (first.status, first.headers["location"]) == (303, "/")
        assert "HttpOnly" in first.headers["set-cookie"]
        assert "SameSite=strict" in first.headers["set-cookie"]
        assert served.ask(f"/?token={served.token}").status == 403
        assert served.ask("/", cookie=first.headers["set-cookie"].partition(";")[0]).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", None])
def test_a_foreign_host_is_refused_even_with_the_cookie(viewed: Served, cookie: str, host: str | None) -> None:
    answer = viewed.ask("/", cookie=cookie, host=host and host.format(port=viewed.port))
    assert answer.status in (400, 403)
    assert "Runs" not in answer.text


def test_localhost_is_this_machine_too(viewed: Served, cookie: str) -> None:
    assert viewed.ask("/", cookie=cookie, host=f"localhost:{viewed.port}").status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
def test_a_foreign_origin_is_refused_even_with_the_cookie(viewed: Served, cookie: str, origin: str) -> None:
    assert viewed.ask("/", cookie=cookie, origin=origin.format(port=viewed.port)).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_who_looks_changes_nothing(viewed: Served, cookie: str, method: str) -> None:
    own = {"cookie": cookie, "origin": f"http://127.0.0.1:{viewed.port}", "content_type": "application/json"}
    assert viewed.ask("/", method=method, body="{}", **own).status in (403, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/run/fake/files/../../secret.json",
        "/run/fake/files/%2e%2e/secret.json",
        "/run/fake/files/..%2fsecret.json",
        "/run/fake/files//etc/hosts.json",
        "/run/fake/files/link.json",
        "/run/fake/files/writeup/../../secret.json",
        "/run/fake/files/artifacts/attribute/attribution.json",
        "/run/../files/secret.json",
        "/run/%2e%2e/files/secret.json",
        "/run/out/",
        "/run/fake/files/a%00.html",
    ],
)
def test_no_path_leads_out_of_a_run(viewed: Served, cookie: str, folder: Path, path: str) -> None:
    for link, to in ((folder / "fake/link.json", folder / "secret.json"), (folder / "out", folder.parent)):
        if not link.is_symlink():
            link.symlink_to(to)
    (folder.parent / "study.yaml").touch()
    answer = viewed.ask(path, cookie=cookie)
    assert answer.status == 404
    assert "outside" not in answer.text
    assert (
        "Not shown, since they lead out of the folder or have names that are no UTF-8: out"
        in viewed.ask("/", cookie=cookie).text
    )


@pytest.mark.parametrize("verdict", [["x"], {"label": "X", "headline": 5, "reasons": [1]}, {"label": "X"}])
def test_a_run_whose_results_are_none_spoils_no_page(
    viewed: Served, cookie: str, folder: Path, verdict: object
) -> None:
    path = folder / "fake/final_results.json"
    held = path.read_text()
    try:
        path.write_text(json.dumps({"verdict": verdict}))
        for page in ("/", "/run/fake/", "/compare?a=fake&b=begun"):
            answer = viewed.ask(page, cookie=cookie)
            assert (answer.status, "holds no verdict; run datablame report" in answer.text) == (200, True)
    finally:
        path.write_text(held)


def test_names_that_no_address_can_have_are_told(viewed: Served, cookie: str, folder: Path) -> None:
    try:
        (folder / os.fsdecode(b"run\xff")).mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    (folder / os.fsdecode(b"run\xff") / "study.yaml").touch()
    (folder / os.fsdecode(b"fake/f\xff.md")).touch()
    assert "run?" in viewed.ask("/", cookie=cookie).text
    assert viewed.ask("/run/fake/", cookie=cookie).status == 200


def test_pages_say_what_they_may_load_and_are_not_kept(viewed: Served, cookie: str) -> None:
    for path in ("/", "/run/fake/", "/compare?a=fake&b=begun", "/run/begun/status", "/run/fake/files/manifest.json"):
        headers = viewed.ask(path, cookie=cookie).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
    of_run = viewed.ask("/run/fake/files/index.html", cookie=cookie)
    assert "connect-src 'none'" in of_run.headers["content-security-policy"]
    assert of_run.text.startswith("<!doctype html>")


def test_labels_are_taken_as_json_from_the_own_page_only(labelled: Served) -> None:
    cookie, own = labelled.cookie(), f"http://127.0.0.1:{labelled.port}"

    def send(body: str = '{"does": "skip", "number": 0}', **changed: str | None) -> int:
        headers = {"cookie": cookie, "origin": own, "content_type": "application/json"} | changed
        return labelled.ask("/done", method="POST", body=body, **headers).status

    assert send() == 200
    for changed in (
        {"content_type": "text/plain"},
        {"origin": None},
        {"origin": "http://evil.example"},
        {"cookie": None},
    ):
        assert send(**changed) == 403
    for body in ('{"does": "good", "number": 1}', '{"does": "harmful", "number": "1"}', '{"does": "undo"}', "[]", "{"):
        assert send(body) == 400


def test_only_the_loopback_address_listens(viewed: Served) -> None:
    other = socket.socket()
    with other:
        other.settimeout(2)
        # All of 127.0.0.0/8 is this machine; a server on every interface would answer here.
        with pytest.raises(OSError, match=r"refused|timed out"):
            other.connect(("127.0.0.2", viewed.port))


def test_ctrl_c_ends_it_quietly(folder: Path) -> None:
    with serving("view", folder) as served:
        assert served.ask("/").status == 403
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) == 0
        assert served.process.stderr is not None
        assert served.process.stderr.read() == ""


def test_mistakes_are_one_line(viewed: Served, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    mistakes = {
        f"view {folder} --port {viewed.port}": r"--port \d+ cannot be used \(.*in use\); choose another one",
        f"view {tmp_path}/none": "none is not there; give a folder of runs, or begin one",
        f"view {tmp_path}/empty": "empty holds no run; give a run folder or a folder of them",
        f"label {tmp_path}/empty": "empty holds no run",
        f"label {folder}/begun --annotator ../x": r"--annotator \.\./x is no name; use a to z, 0 to 9 and -",
        f"label {folder}/begun --terminal": "--terminal needs a terminal to read keys from",
    }
    for command, ended in asked(mistakes, tmp_path).items():
        assert ended.returncode == 2, command
        assert re.search(mistakes[command], ended.stderr), ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert not list(folder.rglob("human_labels*"))


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_where_the_extra_is_missing_one_line_says_what_to_install(package: str, folder: Path) -> None:
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        f"u.find_spec = lambda name: None if name == {package!r} else find(name)\n"
        f"sys.argv = ['datablame', 'view', {str(folder)!r}]\nfrom datablame.cli.app import main\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == f"datablame: {package} is not installed; pip install 'datablame[view]'\n"
