"""Commands as a shell gives them, many in one process: what torch takes to import is paid once."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_RUN = """
import contextlib, io, json, socket, sys
def no_network(*args, **kwargs): raise OSError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network
from datablame.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["datablame", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


class Answer(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def asked(commands: Iterable[str], folder: Path) -> dict[str, Answer]:
    """What each command says in a folder, without network and key, in their order; the same one is given once."""
    listed = list(dict.fromkeys(commands))
    environment = {name: value for name, value in os.environ.items() if name != "ANTHROPIC_API_KEY"}
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps([shlex.split(command) for command in listed])],
        cwd=folder,
        env={**environment, "HF_HOME": str(folder / "hub"), "DATABLAME_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    answers = (Answer(*json.loads(line)) for line in ended.stdout.splitlines())
    return dict(zip(listed, answers, strict=True))
