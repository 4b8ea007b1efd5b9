"""The parts of the world that phases' tables depend on: a fingerprint is a hash of some of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datablame.engine.files import hash_file
from datablame.judge.choice import identity
from datablame.world.identity import portable
from datablame.world.registration import FILE

if TYPE_CHECKING:
    from datablame.world.world import World

_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "plausibility", "batch_rows")


def part_of(world: "World", name: str) -> Any:
    """One part as JSON; ways, speeds and prices of asking a judge, devices and paths are in none of them.

    Raises:
        KeyError: there is no such part.
    """
    values, settings = portable(world.study, world.identities), world.study.attribute
    parts: dict[str, Callable[[], Any]] = {
        "identity": lambda: {
            "seed": world.seed,
            "behaviours": values["behaviours"],
            "prompts": [[p.id, p.behaviour, p.split, p.text] for p in world.prompts if p.split != "harmless"],
            "truth": values["truth"],
            "models": values["models"],
        },
        "harmless": lambda: [[p.id, p.text] for p in world.split("harmless")],
        "scan": lambda: values["scan"],
        "surface": lambda: values["surface"],
        "sampling": lambda: {key: values["surface"][key] for key in _SAMPLING},
        "judge": lambda: {
            "rules": values["judge"]["rules"],
            "classifier": world.judge.classifier,
            "claude": identity(world.study, world.judge)[0],
        },
        "attribution judge": lambda: identity(world.study, world.judge)[1],
        "pool": lambda: {
            "data": values["data"],
            "max_tokens": settings.max_tokens,
            "duplicate_threshold": settings.duplicate_threshold,
            "seed": world.seed,
        },
        "prefilter": lambda: values["prefilter"],
        "attribute": lambda: values["attribute"],
        "patch": lambda: values["patch"],
        "everything": lambda: values,
        "registration": lambda: hash_file(world.root / FILE) if (world.root / FILE).is_file() else None,
    }
    return parts[name]()
