"""Money: nothing is asked whose worst case would go beyond what may be spent."""

import threading

from datablame.errors import BudgetError


class Budget:
    """What may be spent in all (None: anything), what was spent, and the worst case of what is under way."""

    def __init__(self, most_usd: float | None, spent_usd: float) -> None:
        self._most = most_usd
        self._spent = spent_usd
        self._reserved = 0.0
        self._committed = 0.0
        self._calls = 0
        self._changed = threading.Condition()

    def fits(self, worst_usd: float) -> bool:
        """Whether that much more could be asked now."""
        with self._changed:
            return self._fits(worst_usd)

    def reserve(self, worst_usd: float) -> None:
        """Set the worst case of a call aside; waits for calls under way, which cost less than their worst case.

        Raises:
            BudgetError: the call might exceed the budget, and no call is under way that could make room.
        """
        with self._changed:
            while not self._fits(worst_usd):
                if not self._calls:
                    raise self.used_up(worst_usd)
                self._changed.wait()
            self._calls += 1
            self._reserved += worst_usd

    def settle(self, worst_usd: float, cost_usd: float) -> None:
        """Replace the worst case of a call by what it did cost."""
        with self._changed:
            self._calls -= 1
            self._reserved = self._reserved - worst_usd if self._calls else 0.0
            self._spent += cost_usd
            self._changed.notify_all()

    def commit(self, worst_usd: float, cost_usd: float = 0.0) -> None:
        """Count the worst case of a batch that the API has; a negative one takes it back and `cost_usd` counts."""
        with self._changed:
            self._committed += worst_usd
            self._spent += cost_usd

    def used_up(self, worst_usd: float) -> BudgetError:
        """The error that says so."""
        open_batches = f" ({self._committed:.4f} more in open batches)" if self._committed > 0 else ""
        return BudgetError(
            f"--max-cost {self._most}: {self._spent:.6f} USD are spent{open_batches} and the next call may cost "
            f"{worst_usd:.6f}; run again with --resume and a higher --max-cost: what was answered is kept "
            "and not paid again"
        )

    def _fits(self, worst_usd: float) -> bool:
        return self._most is None or self._spent + self._reserved + self._committed + worst_usd <= self._most
