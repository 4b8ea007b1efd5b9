"""Finished work items that survive a kill."""

import json
import os
from pathlib import Path
from typing import Any

from datablame.errors import PhaseError


class Journal:
    """Finished work items, appended as they finish; a torn last line (a kill while writing) is dropped.

    Raises:
        PhaseError: a line before the last does not parse, so the file was changed by something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._valid_bytes: int | None = None

    def read(self) -> dict[str, Any]:
        """Payloads by key, in the order in which they were written."""
        entries: dict[str, Any] = {}
        self._valid_bytes = 0
        if not self._path.exists():
            return entries
        lines = self._path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                entry = json.loads(line)
                entries[entry["key"]] = entry["payload"]
            except (ValueError, KeyError, TypeError):
                if number == len(lines) - 1 and not lines[-1]:
                    break
                raise PhaseError(f"{self._path}: line {number} is damaged; delete the file to redo its items") from None
            self._valid_bytes += len(line) + 1
        return entries

    def append(self, key: str, payload: Any) -> None:
        """Add one finished item; it is on disk when this returns."""
        if self._valid_bytes is None:
            self.read()
        assert self._valid_bytes is not None
        line = json.dumps({"key": key, "payload": payload}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            file.truncate(self._valid_bytes)
            file.seek(self._valid_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._valid_bytes += len(line)
