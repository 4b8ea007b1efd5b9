"""A study frozen before it is patched: hypotheses, protocol, K, alpha*, margins, tests, and all that they rest on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from datablame import __version__
from datablame.engine.run_folder import locked, read_json, write_json
from datablame.errors import RequestError
from datablame.judge.choice import choice_of
from datablame.organism.foretold import foretold
from datablame.patch.difference import EQUIVALENCE_LEVEL, MIN_SEEDS
from datablame.pipeline.references import references
from datablame.pipeline.run import open_run, states
from datablame.report.preregistered import differences
from datablame.report.registration import FILE, asked, content_hash, read_registration
from datablame.stats.permutation import smallest_p
from datablame.stats.power import LEVEL
from datablame.study.checks import OUTSIDE_FAMILY
from datablame.study.schema import Behaviour, Prompts, Study

_REFERENCES = ("random", "baseline")


class Frozen(NamedTuple):
    """Where the registration lies, its hash, its date, and whether it was there already."""

    path: Path
    sha256: str
    date: str
    was_there: bool


def freeze(study: Study, root: Path) -> Frozen:
    """Write preregistration.json into a run folder, or find that it says the same already.

    Raises:
        RequestError: the folder holds another registration or another study, or its patch phase has begun.
    """
    open_run(root, study, resume=True)
    with locked(root):
        path = root / FILE
        if (left := _patched(root)) is not None:
            raise RequestError(
                f"{left} exists: the patch phase has begun, and a registration after the fact is none; "
                "choose a new folder with --out"
            )
        content = _content(study, root)
        if path.exists():
            return _same(path, read_registration(root)["registered"], content)
        registered = {**content, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        sha256 = content_hash(registered)
        write_json(path, {**registered, "sha256": sha256})
        return Frozen(path, sha256, registered["date"], was_there=False)


def departures(study: Study, root: Path) -> list[str]:
    """In what a study that is about to run differs from what its folder has registered, a sentence each."""
    registered = read_registration(root).get("registered")
    if registered is None:
        return []
    actual = study.model_dump(mode="json", by_alias=True)
    return [each.sentence() for each in differences(registered.get("config", {}), actual)]


def _patched(root: Path) -> Path | None:
    """What the patch phase has left first, if it has left anything."""
    out = root / "artifacts" / "patch"
    return min(out.iterdir(), default=None) if out.is_dir() else None


def _same(path: Path, held: Mapping[str, Any], content: Mapping[str, Any]) -> Frozen:
    found = {key: value for key, value in held.items() if key not in ("date", "sha256")}
    changed = [each.field for each in differences(found, content)]
    if content_hash(held) != held.get("sha256"):
        raise RequestError(f"{path}: its hash is broken, so that it registers nothing; choose a new folder with --out")
    if changed:
        more = "" if len(changed) == 1 else f" and {len(changed) - 1} more"
        raise RequestError(
            f"{path} registers something else ({changed[0]}{more}), and what is registered stays so; "
            "choose a new folder with --out"
        )
    return Frozen(path, held["sha256"], held["date"], was_there=True)


def _content(study: Study, root: Path) -> dict[str, Any]:
    prompts, behaviours = _asked_of(study)
    patch, surface = study.patch, study.surface
    methods = [arm for arm in patch.arms if arm not in OUTSIDE_FAMILY]
    done = any(state.name == "surface" and state.state == "done" for state in states(study, root))
    star = read_json(root / "artifacts" / "surface" / "alpha_star.json") if done else {"alpha_star": None}
    return {
        "schema_version": 1,
        "datablame": __version__,
        "study": study.name,
        "hypotheses": [_hypothesis(study, method) for method in methods],
        "headline": {
            "protocol": patch.headline,
            "k": study.attribute.top_k,
            "alpha": "alpha*",
            "split": "held-out",
            "behaviours": "all",
        },
        "alpha_star": {
            "rule": "the largest alpha above 0 at which the untrained after model is coherent often enough on the "
            "attribution prompts",
            "alphas": list(surface.alphas),
            "coherent_share": surface.coherent_share,
            "surface_done": done,
            "value": star["alpha_star"],
        },
        "margins": {"drop": patch.margin, "equivalence": patch.margin},
        "tests": _tests(study, methods),
        **asked(prompts, behaviours),
        "classifier": asdict(choice_of(study, root)),
        "references": references(study, root),
        "config": study.model_dump(mode="json", by_alias=True),
    }


def _asked_of(study: Study) -> tuple[Prompts, tuple[Behaviour, ...]]:
    if study.organism is not None:
        return foretold(study.organism)
    assert study.prompts is not None
    return study.prompts, study.behaviours


def _hypothesis(study: Study, method: str) -> dict[str, Any]:
    patch, k = study.patch, study.attribute.top_k
    did = {
        "remove": f"removing the documents that {method} flags",
        "swap": f"exchanging the answers of the pairs that {method} flags",
        "drop-source": f"removing the sources that hold most of what {method} flags",
    }[patch.intervention]
    return {
        "method": method,
        "lowers": "the mean harmful rate over held-out prompts at alpha*",
        "against": list(_REFERENCES),
        "by_at_least": patch.margin,
        "statement": (
            f"Under {patch.headline} at K = {k}, {did} lowers the mean harmful rate over held-out prompts at alpha* by "
            f"at least {100 * patch.margin:g} % against {' and against '.join(_REFERENCES)}."
        ),
    }


def _tests(study: Study, methods: Sequence[str]) -> dict[str, Any]:
    seeds = study.patch.seeds_of(study.patch.headline)
    enough = len(seeds) >= MIN_SEEDS
    least = smallest_p(len(seeds), len(seeds)) if enough else None
    return {
        "primary": "exact two-sided permutation of the arm labels over training seeds, unpaired",
        "p": f"the larger one against {' and against '.join(_REFERENCES)}",
        "level": LEVEL,
        "adjustment": "Holm",
        "family": list(methods),
        "seeds": list(seeds),
        "smallest_p": least,
        "smallest_adjusted_p": None if least is None else min(1.0, least * max(1, len(methods))),
        "why_no_p": None if enough else f"fewer than {MIN_SEEDS} training seeds",
        "beside": [
            "t with the errors of prompts and of training seeds",
            "two-way bootstrap interval over prompts and training seeds",
            "logistic mixed model",
        ],
        "no_effect": {"test": "two one-sided t tests", "level": EQUIVALENCE_LEVEL, "margin": study.patch.margin},
    }
