"""Progress of a script: one line a step, on stderr."""

import sys

__all__ = ["Printed"]


class Printed:
    """Says each step when it begins, and every tenth of it."""

    def __init__(self) -> None:
        self._description, self._total, self._done = "", 0, 0

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin a step."""
        self._description, self._total, self._done = description, total, done
        self.note(f"{description} ({total})")

    def advance(self, n: int = 1) -> None:
        """Finish `n` more units; say so at every tenth of the whole."""
        tenth, self._done = 10 * self._done // max(1, self._total), self._done + n
        if self._total >= 10 and 10 * self._done // self._total > tenth:
            self.note(f"{self._description}: {self._done} of {self._total}")

    def note(self, text: str) -> None:
        """Say one line."""
        print(text, file=sys.stderr, flush=True)
