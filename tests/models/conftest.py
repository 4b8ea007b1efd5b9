"""What several tests of models need."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    """A pair whose files a test may spoil."""
    return Path(shutil.copytree(tiny_pair_folder, tmp_path / "pair"))
