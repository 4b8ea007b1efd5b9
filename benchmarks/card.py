"""What a graphics card has to show: exactness, speed, a study, memory; each part in a process with a time limit.

    bash benchmarks/card.sh                              # on a machine with a card; 9 minutes at most
    bash benchmarks/card.sh --device cpu --reduced       # a minute or two on a CPU, to see that everything runs

A part that fails or runs out of time is a row that says so. The rows are kept as they come, so that whatever ends this
early leaves what was measured. Here are the limits and the table; what is measured is in card_parts.py.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

__all__ = ["Row", "missing"]

ROOT = Path(__file__).resolve().parent.parent
EXACT = "exactness"
PARTS = {
    "machine": 60,
    "exactness-float32": 80,
    "exactness-bfloat16": 80,
    "exactness-float16": 80,
    "sampler-64": 90,
    "gradients": 120,
    "sampler-512": 60,
    "preset": 150,
    "training": 60,
    "float16": 90,
    "study": 120,
    "sampler-2048": 90,
}
"""Every part and the most seconds it gets at full size, the most important first."""
_ENDING_SECONDS = 2
"""Kept back for the table."""


class Row(NamedTuple):
    """One thing that was measured, or the reason why it was not."""

    part: str
    what: str
    dtype: str
    measured: str
    allowed: str
    verdict: str
    seconds: float


class Log(NamedTuple):
    """Where the parts' rows and stderr go, and what every file tells of the run."""

    folder: Path
    rows: list[Row]
    told: dict[str, object]

    def add(self, row: Row) -> None:
        """Keep a row: a kill leaves all rows before it in both files."""
        row = row._replace(measured=_anonymous(row.measured))
        self.rows.append(row)
        print(f"{row.part}: {row.what} {row.dtype}: {row.measured} {row.verdict}", file=sys.stderr, flush=True)
        machine = {each.what: each.measured for each in self.rows if each.part == "machine"}
        content = {**self.told, "machine": machine, "rows": [each._asdict() for each in self.rows]}
        _write(self.folder / "card.json", json.dumps(content, indent=1) + "\n")
        _write(self.folder / "card.md", table(self.rows))


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = "| part | what | dtype | measured | allowed | verdict | seconds |\n|---|---|---|---|---|---|---:|"
    lines = ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join([head, *lines]) + "\n"


def missing(wheels: Path) -> list[str]:
    """The packages that have a wheel in the folder and are not installed."""
    return sorted({name for path in wheels.glob("*.whl") if not _installed(name := path.name.split("-")[0])})


def run(part: str, log: Log, limit: float, device: str, reduced: bool) -> None:
    """One part in a process of its own, its rows kept as they come; what goes wrong is a row too."""
    if limit < 1:
        log.add(Row(part, "not begun", "", "no time was left", "", "not run", 0.0))
        return
    program = str(ROOT / "benchmarks" / "card_parts.py")
    command = [sys.executable, program, part, "--device", device, *(["--reduced"] if reduced else [])]
    began, late = time.monotonic(), threading.Event()
    with (log.folder / "card.log").open("a+", encoding="utf-8", errors="replace") as stderr:
        stderr.write(f"\n== {part} ==\n")
        stderr.flush()
        start = stderr.tell()
        # A group of its own, so that what it starts ends with it.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0)

        def stop() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.add(Row(part, **json.loads(line)))
            code = process.wait()
        finally:
            timer.cancel()
            _end(process)
        stderr.seek(start)
        said = [line.strip() for line in stderr.read().splitlines() if line.strip()]
    seconds = round(time.monotonic() - began, 1)
    if late.is_set():
        log.add(Row(part, "out of time", "", f"stopped after {limit:.0f} s", "", "time-out", seconds))
    elif code:
        last = said[-1] if said else "nothing on stderr"
        log.add(Row(part, "ended early", "", f"exit code {code}: {last[:300]}", "", "error", seconds))


def _end(process: "subprocess.Popen[str]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _anonymous(text: str) -> str:
    """Without folders and without the machine's name."""
    text = re.sub(r"(?<![\w.])/(?:[^\s/'\":]+/)*([^\s/'\":]+)", r"\1", text)
    return text.replace(platform.node() or "\0", "HOST")


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main() -> None:
    """Run the parts, print the table; 0 where every row of exactness passed."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/card"), help="folder for card.json, .md and .log")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--reduced", action="store_true", help="small sizes, to see that everything runs, slowly too")
    parser.add_argument("--seconds", type=float, default=540, help="for everything together")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts alone")
    parser.add_argument("--missing", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.missing is not None:
        for name in missing(options.missing):
            print(name)
        return
    # So that the part that runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("card.json", "card.md", "card.log"):
        (options.out / name).unlink(missing_ok=True)
    log = Log(options.out, [], {"device": options.device, "reduced": options.reduced})
    for part, most in PARTS.items():
        if part in options.only:
            left = options.seconds - _ENDING_SECONDS - (time.monotonic() - began)
            run(part, log, left if options.reduced else min(most, left), options.device, options.reduced)
    print(table(log.rows), end="")
    sys.exit(any(row.part.startswith(EXACT) and row.verdict not in ("pass", "measured") for row in log.rows))


if __name__ == "__main__":
    main()
