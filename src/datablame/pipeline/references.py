"""What a study only refers to, by content: checkpoints, pool, rules, scores, planted truth, or an organism's recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datablame import __version__
from datablame.engine.run_folder import hash_file, read_json
from datablame.models.source import known_commit
from datablame.pipeline.fingerprints import held_commit
from datablame.report.registration import BEGUN, FILE, read_registration
from datablame.study.schema import ModelRef, Study


def references(study: Study, root: Path) -> dict[str, Any]:
    """The hashes of the local files that a study names and the commits of its hub models, as far as known here.

    Nobody is asked, and nothing is loaded: a commit that is not known yet is None.
    """
    if study.organism is not None:
        from datablame.organism.make import identity

        return {"organism": {"version": identity(study.organism)["version"]}}
    from datablame.world.rows import pool_files

    assert study.models is not None
    assert study.data is not None
    found: dict[str, Any] = {
        "models": {name: _model(getattr(study.models, name), name, root) for name in ("before", "after")},
        "data": {"files": _hashes(pool_files(study.data.path), Path(study.data.path).expanduser())},
    }
    paths = {
        "judge.rules": study.judge.rules,
        "truth": study.truth,
        "models.chat_template": study.models.chat_template,
        **{f"attribute.scores.{name}": path for name, path in study.attribute.scores.items()},
    }
    files = {name: hash_file(Path(path)) for name, path in paths.items() if path is not None and Path(path).is_file()}
    return {**found, "files": files} if files else found


def begun_under(study: Study, root: Path, out: Path) -> dict[str, Any] | None:
    """What to write beside the patch phase's artifacts as it begins; None where nothing was ever registered.

    The first start decides: a registration that turns up when the phase has left something already is none.
    """
    if not (root / FILE).exists():
        return read_json(root / BEGUN) if (root / BEGUN).exists() else None
    if (root / BEGUN).exists():
        sha256 = read_json(root / BEGUN)["sha256"]
    else:
        sha256 = None if out.exists() and any(out.iterdir()) else read_registration(root)["registered"].get("sha256")
    return {"sha256": sha256, "datablame": __version__, "references": references(study, root)}


def _model(ref: ModelRef, name: str, root: Path) -> dict[str, Any]:
    place = Path(ref.path).expanduser()
    folder = place / ref.subfolder if ref.subfolder else place
    files = [place] if place.is_file() else sorted(folder.glob("*")) if folder.is_dir() else []
    if files:
        return {"files": _hashes(files, folder)}
    return {"commit": held_commit(ref, name, root) or known_commit(ref)}


def _hashes(files: Sequence[Path], base: Path) -> dict[str, str]:
    """By path within the folder, by name for a file that is named itself."""
    return {
        str(file.relative_to(base)) if base in file.parents else file.name: hash_file(file)
        for file in files
        if file.is_file()
    }
