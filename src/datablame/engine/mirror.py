"""A run folder on a machine that may not see it: its files come by their content, what is written there goes back.

What is sent holds the folder's paths; they arrive as those of the mirror.
"""

import io
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datablame.engine.files import write_atomic


class Stamp(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    modified_ns: int


class _Pickler(pickle.Pickler):
    """Writes a path at or below `root` as what it is there."""

    def __init__(self, file: io.BytesIO, root: Path) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._root = root

    def persistent_id(self, obj: Any) -> str | None:
        """The path below the run folder, where it is one."""
        if isinstance(obj, Path) and obj.is_relative_to(self._root):
            return obj.relative_to(self._root).as_posix()
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, root: Path) -> None:
        super().__init__(file)
        self._root = root

    def persistent_load(self, pid: Any) -> Path:
        """The path in the mirror."""
        return self._root / str(pid)


def packed(value: Any, root: Path) -> bytes:
    """A value whose paths below the run folder go with it."""
    file = io.BytesIO()
    _Pickler(file, root).dump(value)
    return file.getvalue()


def unpacked(content: bytes, root: Path) -> Any:
    """The value, with the paths of this folder."""
    return _Unpickler(io.BytesIO(content), root).load()


def stamps(root: Path) -> dict[str, Stamp]:
    """The files of a run's phases and of its world by their paths below the folder, unfinished writes left out."""
    found = {}
    for path in (root / "artifacts").rglob("*"):
        if path.is_file() and not path.name.startswith(("journal", ".")) and path.suffix != ".part":
            about = path.stat()
            found[path.relative_to(root).as_posix()] = Stamp(about.st_size, about.st_mtime_ns)
    return found


class Mirror:
    """One process's copy of a run folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[str, Stamp] = {}

    def lacking(self, there: Path, wanted: Mapping[str, Stamp]) -> list[str]:
        """Which of these files are neither held nor seen at `there`."""
        return [n for n, stamp in wanted.items() if self._held.get(n) != stamp and _stamp(there / n) != stamp]

    def update(self, there: Path, wanted: Mapping[str, Stamp], fetch: Callable[[str], bytes]) -> None:
        """Have these files: linked where this machine sees the folder itself, at `there`; else what `fetch` gives."""
        for name in [*self._held]:
            if self._held[name] != wanted.get(name):
                (self.root / name).unlink(missing_ok=True)
                del self._held[name]
        for name, stamp in wanted.items():
            path, original = self.root / name, there / name
            if name in self._held:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if _stamp(original) == stamp:
                path.symlink_to(original.absolute())
            else:
                write_atomic(path, fetch(name))
            self._held[name] = stamp

    def take_new(self) -> dict[str, bytes]:
        """What was written here since the last time, by path; it is no longer here."""
        new = {}
        for folder, _, names in os.walk(self.root):
            for path in (Path(folder) / name for name in names):
                name = path.relative_to(self.root).as_posix()
                if name not in self._held and path.suffix != ".part":
                    new[name] = path.read_bytes()
                    path.unlink()
        return new


def _stamp(path: Path) -> Stamp | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return Stamp(about.st_size, about.st_mtime_ns)
