"""A command's server in a process of its own, and requests to it as they are written."""

import contextlib
import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Answer(NamedTuple):
    """What a server says."""

    status: int
    headers: Mapping[str, str]
    text: str


class Served(NamedTuple):
    """A server: its process, the address that it printed, its port and token."""

    process: "subprocess.Popen[str]"
    address: str
    port: int
    token: str

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str | None) -> Answer:
        """One request; a header that is None is not sent, and Host is the server's own if none is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {"host": f"127.0.0.1:{self.port}"} | {name.replace("_", "-"): it for name, it in headers.items()}
        connection.putrequest(method, path, skip_host=True)
        for name, value in (given | {"content-length": str(len((body or "").encode()))}).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders((body or "").encode())
        with contextlib.closing(connection):
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, told, answer.read().decode("utf-8", "replace"))

    def cookie(self) -> str:
        """Use the token up for the cookie."""
        return self.ask(f"/?token={self.token}").headers["set-cookie"].partition(";")[0]


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[Served]:
    """`datablame ARGUMENTS --no-browser` until the block ends."""
    command = [sys.executable, "-m", "datablame", *map(str, arguments), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), process.stderr.read()
            start, token = address.split("/?token=")
            yield Served(process, address, int(start.rpartition(":")[2]), token)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
