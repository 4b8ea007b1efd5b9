"""Whether a run ended as its verdict says."""

import subprocess
from pathlib import Path
from typing import Any

from datablame.engine.files import read_json

__all__ = ["finished"]


def finished(ended: "subprocess.CompletedProcess[Any] | subprocess.Popen[Any]", out: Path) -> bool:
    """Whether a process wrote the report and ended with 1 for INVALID, 0 for every other verdict."""
    path = out / "final_results.json"
    return path.exists() and ended.returncode == (read_json(path)["verdict"]["label"] == "INVALID")
