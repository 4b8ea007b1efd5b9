"""Work in steps that a kill cannot tear: what is finished stays, what is half done is done again."""

import shutil
from collections.abc import Callable
from pathlib import Path


def build_atomically(path: Path, build: Callable[[Path], None]) -> None:
    """Let `build` make the folder or file PATH.part and rename it to PATH; nothing when PATH is there."""
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    build(part)
    part.replace(path)
