"""How the studies run datablame: resumable, without a judge's key, and told apart from a crash by the verdict."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from datablame.engine.files import build_atomically, write_atomic

__all__ = ["run_study", "take_over"]


def run_study(study: str | Path, folder: Path, *more: str, sets: Iterable[str] = (), until: str | None = None) -> int:
    """Run or resume a study in a folder; its exit code, which is 1 only where the verdict is INVALID.

    Whatever else fails ends the script too. The outcome must not depend on whether a key for a judge happens to be set.

    Args:
        study: name of a preset or path of a study file.
        folder: the run folder.
        more: further options of `datablame run`.
        sets: values of `--set`.
        until: the last phase to run; without it all.
    """
    command = [sys.executable, "-m", "datablame", "run", str(study), "--out", str(folder), "--resume", *more]
    for override in sets:
        command += ["--set", override]
    command += ["--until", until] if until is not None else []
    environment = {name: value for name, value in os.environ.items() if name != "ANTHROPIC_API_KEY"}
    code = subprocess.run(command, check=False, env=environment).returncode
    if code and not (code == 1 and _invalid(folder)):
        sys.exit(code)
    return code


def take_over(source: Path, folder: Path, phases: Iterable[str]) -> None:
    """Copy the world and the artifacts of phases from another run into a folder that has none; a kill tears nothing."""
    for phase in ("world", *phases):
        build_atomically(folder / "artifacts" / phase, partial(shutil.copytree, source / "artifacts" / phase))
    if not (folder / "study.yaml").exists():
        write_atomic(folder / "study.yaml", (source / "study.yaml").read_bytes())


def _invalid(folder: Path) -> bool:
    path = folder / "final_results.json"
    verdict = json.loads(path.read_text(encoding="utf-8"))["verdict"] if path.exists() else None
    return verdict is not None and verdict["label"] == "INVALID"
