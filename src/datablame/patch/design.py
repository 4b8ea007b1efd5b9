"""Which arms a study trains: at which K, and with which seeds."""

from datablame.study.checks import INDEPENDENT_OF_K
from datablame.study.schema import Study
from datablame.tables import Protocol


def trained(study: Study, protocol: Protocol) -> list[tuple[str, int]]:
    """Every arm and K of a protocol, in the order of `patch.arms`; K is 0 for an arm that is the same at every K.

    The after model itself is not trained. The baseline is trained again (`a-a`) where the verdict comes from.
    """
    arms = [
        arm for arm in study.patch.arms if arm != "untrained" and (arm != "a-a" or protocol == study.patch.headline)
    ]
    return [(arm, k) for arm in arms for k in ((0,) if arm in INDEPENDENT_OF_K else study.ks)]


def training_seeds(study: Study, protocol: Protocol, arm: str) -> tuple[int, ...]:
    """The seeds of one arm; those of `a-a` follow the largest of the others, so that none is shared."""
    seeds = study.patch.seeds_of(protocol)
    beyond = 1 + max(seeds) - min(0, *seeds)
    return tuple(seed + beyond for seed in seeds) if arm == "a-a" else seeds
