"""The parts of the world that phases' tables depend on: a fingerprint is a hash of some of them."""

from typing import TYPE_CHECKING, Any

from datablame.engine.run_folder import hash_file
from datablame.judge.choice import CLAUDE_FIELDS, identity

if TYPE_CHECKING:
    from datablame.world.world import World


_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "plausibility", "batch_rows")
REGISTRATION = "preregistration.json"


def part_of(world: "World", name: str) -> Any:
    """One part as JSON; ways, speeds and prices of asking a judge, devices and paths are in none of them.

    Raises:
        KeyError: there is no such part.
    """
    values = world.study.model_dump(mode="json", by_alias=True)
    parts: dict[str, Any] = {
        "identity": lambda: {
            "seed": world.seed,
            "behaviours": values["behaviours"],
            "prompts": [[p.id, p.behaviour, p.split, p.text] for p in world.prompts if p.split != "harmless"],
            "truth": world.identities["files"].get("truth"),
            "models": world.identities["models"],
        },
        "harmless": lambda: [[p.id, p.text] for p in world.split("harmless")],
        "scan": lambda: values["scan"],
        "surface": lambda: values["surface"],
        "sampling": lambda: {key: values["surface"][key] for key in _SAMPLING},
        "judge": lambda: _labels(world),
        "attribution judge": lambda: identity(world.study, world.judge)[1],
        "pool": lambda: {
            "data": world.identities["data"],
            "max_tokens": world.study.attribute.max_tokens,
            "duplicate_threshold": world.study.attribute.duplicate_threshold,
            "seed": world.seed,
        },
        "prefilter": lambda: values["prefilter"],
        "attribute": lambda: {
            **{key: value for key, value in values["attribute"].items() if key not in ("index", "scores")},
            "scores": {k: v for k, v in world.identities["files"].items() if k.startswith("attribute.scores.")},
        },
        "patch": lambda: values["patch"],
        "everything": lambda: [{k: v for k, v in values.items() if k not in ("models", "data")}, world.identities],
        "registration": lambda: _hash(world, REGISTRATION),
    }
    return parts[name]()


def _labels(world: "World") -> Any:
    labels = identity(world.study, world.judge)[0]
    judge = world.study.judge.model_dump(mode="json", exclude={"calibration", "rules"})
    others = {key: value for key, value in judge.items() if key not in CLAUDE_FIELDS}
    return {
        **others,
        "classifier": world.judge.classifier,
        "claude": labels,
        "rules": world.identities["files"].get("judge.rules"),
    }


def _hash(world: "World", name: str) -> str | None:
    path = world.root / name
    return hash_file(path) if path.is_file() else None
