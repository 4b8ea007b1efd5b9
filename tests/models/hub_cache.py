"""Checkpoints laid out as huggingface_hub keeps them, so that hub ids load without a network."""

import shutil
from pathlib import Path

__all__ = ["cached"]


def cached(cache: Path, repo: str, folder: Path, commit: str, revision: str = "main") -> Path:
    """Put the files of `folder` into the cache as `repo` at `commit`, which `revision` names."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    if not snapshot.exists():
        shutil.copytree(folder, snapshot)
    ref = place / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    return snapshot
