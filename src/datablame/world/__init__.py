"""Phase zero: everything that a run rests on, frozen and checked once."""

from datablame.world.pool import Pool
from datablame.world.world import World

__all__ = ["Pool", "World"]
