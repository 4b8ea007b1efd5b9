"""How a generated file is written, or with `--check` compared."""

import sys
from collections.abc import Callable
from pathlib import Path


def main(path: Path, content: Callable[[], str]) -> int:
    """Write the file, or with --check return 1 when it is out of date."""
    if "--check" not in sys.argv[1:]:
        path.write_text(content(), encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != content():
        print(f"{path.name} is out of date; run make docs", file=sys.stderr)
        return 1
    return 0
