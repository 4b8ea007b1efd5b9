"""A study frozen before it is patched: hypotheses, protocol, K, alpha*, margins, tests, and the world they rest on."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from datablame import __version__
from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress
from datablame.engine.files import json_object, packaged_yaml, write_json
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
            held = json_object(path)
            if content_hash(held) != held.get("sha256"):
                problem = "its hash is broken, so that it registers nothing"
                raise RequestError(f"{path}: {problem}; choose a new folder with --out")
            then = {key: value for key, value in held.items() if key not in ("date", "sha256")}
            if changed := differences(then, content):
                what = changed[0].field + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
                raise RequestError(
                    f"{path} registers something else ({what}), and what is registered stays so; "
                    "choose a new folder with --out"
                )
            return Registration(path, held["sha256"], held["date"], was_there=True)
        registered = {**content, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        sha256 = content_hash(registered)
        write_json(path, {**registered, "sha256": sha256})
        return Registration(path, sha256, registered["date"], was_there=False)


def _content(world: World) -> dict[str, Any]:
    study, patch, k = world.study, world.study.patch, world.study.attribute.top_k
    words = packaged_yaml("datablame.pipeline", "preregistration.yaml")
    family = [kind.name for kind in arm_kinds(study) if kind.in_family]
    seeds, surfaced = patch.seeds_of(patch.headline), state_of(SURFACE, world) == "done"
    least = smallest_p(len(seeds), len(seeds)) if len(seeds) >= MIN_SEEDS else None
    star = Tables(world.root).one(AlphaStar) if surfaced else None
    did, lowers = words["did"][patch.intervention], words["hypothesis"]["lowers"]
    values = {"protocol": patch.headline, "k": k, "lowers": lowers, "percent": 100 * patch.margin}
    statements = {method: words["statement"].format(did=did.format(method=method), **values) for method in family}
    return {
        "schema_version": 2,
        "datablame": __version__,
        "study": study.name,
        "world": described(world),
        "hypotheses": [
            {**words["hypothesis"], "method": method, "by_at_least": patch.margin, "statement": statement}
            for method, statement in statements.items()
        ],
        "headline": {**words["headline"], "protocol": patch.headline, "k": k},
        "alpha_star": {
            **words["alpha_star"],
            "alphas": list(study.surface.alphas),
            "coherent_share": study.surface.coherent_share,
            "surface_done": surfaced,
            "value": star and star.alpha_star,
        },
        "margins": {"drop": patch.margin, "equivalence": patch.margin},
        "tests": {
            **words["tests"],
            "level": LEVEL,
            "family": family,
            "seeds": list(seeds),
            "smallest_p": least,
            "smallest_adjusted_p": None if least is None else min(1.0, least * max(1, len(family))),
            "why_no_p": f"fewer than {MIN_SEEDS} training seeds" if least is None else None,
            "no_effect": {**words["no_effect"], "level": EQUIVALENCE_LEVEL, "margin": patch.margin},
        },
    }
