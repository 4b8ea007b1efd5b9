"""A study frozen before it is patched: hypotheses, protocol, K, alpha*, margins, tests, and the world they rest on."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from datablame import __version__
from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress
from datablame.engine.files import json_object, write_json
from datablame.engine.phase import Tables, left_by, state_of
from datablame.engine.run_folder import REGISTRATION, locked
from datablame.errors import RequestError
from datablame.patch.compare import EQUIVALENCE_LEVEL, MIN_SEEDS
from datablame.patch.phase import PATCH
from datablame.patch.registry import arm_kinds
from datablame.pipeline.checks import check_names
from datablame.pipeline.phases import open_run
from datablame.pipeline.run import frozen
from datablame.stats.arm_tests import smallest_p
from datablame.stats.power import LEVEL
from datablame.surface.phase import SURFACE
from datablame.tables import AlphaStar
from datablame.world import World
from datablame.world.registration import content_hash, described, differences

_REFERENCES = ("random", "baseline")
_DID = {
    "remove": "removing the documents that {method} flags",
    "swap": "exchanging the answers of the pairs that {method} flags",
    "drop-source": "removing the sources that hold most of what {method} flags",
}


class Registration(NamedTuple):
    """Where the registration lies, its hash, its date, and whether it was there already."""

    path: Path
    sha256: str
    date: str
    was_there: bool


def preregister(study: Study, root: Path, *, execution: Execution, progress: Progress) -> Registration:
    """Write preregistration.json into a run folder, or find that it says the same already.

    Raises:
        RequestError: the study cannot be run as it is, the folder holds another registration or another study, or its
            patch phase has begun.
    """
    check_names(study)
    open_run(root, study, resume=True)
    with locked(root):
        if left := left_by(PATCH, root):
            raise RequestError(
                f"{left[0]} exists: the patch phase has begun, and a registration after the fact is none; "
                "choose a new folder with --out"
            )
        world = frozen(study, root, execution=execution, progress=progress)
        content, path = _content(world), root / REGISTRATION
        if path.exists():
            return _same(path, content)
        registered = {**content, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        sha256 = content_hash(registered)
        write_json(path, {**registered, "sha256": sha256})
        return Registration(path, sha256, registered["date"], was_there=False)


def _same(path: Path, content: Mapping[str, Any]) -> Registration:
    held = json_object(path)
    if content_hash(held) != held.get("sha256"):
        raise RequestError(f"{path}: its hash is broken, so that it registers nothing; choose a new folder with --out")
    changed = differences({key: value for key, value in held.items() if key not in ("date", "sha256")}, content)
    if changed:
        more = "" if len(changed) == 1 else f" and {len(changed) - 1} more"
        raise RequestError(
            f"{path} registers something else ({changed[0].field}{more}), and what is registered stays so; "
            "choose a new folder with --out"
        )
    return Registration(path, held["sha256"], held["date"], was_there=True)


def _content(world: World) -> dict[str, Any]:
    study, patch = world.study, world.study.patch
    family = [kind.name for kind in arm_kinds(study) if kind.in_family]
    seeds, k, against = patch.seeds_of(patch.headline), study.attribute.top_k, " and against ".join(_REFERENCES)
    enough = len(seeds) >= MIN_SEEDS
    least = smallest_p(len(seeds), len(seeds)) if enough else None
    lowers = "the mean harmful rate over held-out prompts at alpha*"
    surfaced = state_of(SURFACE, world) == "done"
    star = Tables(world.root).one(AlphaStar) if surfaced else None
    return {
        "schema_version": 2,
        "datablame": __version__,
        "study": study.name,
        "world": described(world),
        "hypotheses": [
            {
                "method": method,
                "lowers": lowers,
                "against": list(_REFERENCES),
                "by_at_least": patch.margin,
                "statement": (
                    f"Under {patch.headline} at K = {k}, {_DID[patch.intervention].format(method=method)} lowers "
                    f"{lowers} by at least {100 * patch.margin:g} % against {against}."
                ),
            }
            for method in family
        ],
        "headline": {"protocol": patch.headline, "k": k, "alpha": "alpha*", "split": "held-out", "behaviours": "all"},
        "alpha_star": {
            "rule": "the largest alpha above 0 at which the after model, untrained, is coherent often enough on the "
            "attribution prompts",
            "alphas": list(study.surface.alphas),
            "coherent_share": study.surface.coherent_share,
            "surface_done": surfaced,
            "value": star and star.alpha_star,
        },
        "margins": {"drop": patch.margin, "equivalence": patch.margin},
        "tests": {
            "primary": "exact two-sided permutation of the arm labels over training seeds, unpaired",
            "p": f"the larger one against {against}",
            "level": LEVEL,
            "adjustment": "Holm",
            "family": family,
            "seeds": list(seeds),
            "smallest_p": least,
            "smallest_adjusted_p": None if least is None else min(1.0, least * max(1, len(family))),
            "why_no_p": None if enough else f"fewer than {MIN_SEEDS} training seeds",
            "beside": [
                "t with the errors of prompts and of training seeds",
                "two-way bootstrap interval over prompts and training seeds",
            ],
            "no_effect": {"test": "two one-sided t tests", "level": EQUIVALENCE_LEVEL, "margin": patch.margin},
        },
    }
