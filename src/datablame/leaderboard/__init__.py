"""All methods on a family of organisms with planted truth: detection, effect of removal, cost."""

from datablame.leaderboard.run import gather, run
from datablame.leaderboard.standings import Leaderboard

__all__ = ["Leaderboard", "gather", "run"]
