"""An organism made once and kept: its folder, its cache, and what it brings to a study."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from datablame.config.schema import Organism, Study
from datablame.engine.execute import Progress
from datablame.engine.files import digest, file_lock, read_json, read_jsonl, write_json
from datablame.errors import RequestError

RECIPES = ("templated", "quirk")
HARMLESS_PROMPTS = 20
_DESCRIBED = ("id", "description", "rubric", "keywords")

_logger = logging.getLogger(__name__)


class Preview(NamedTuple):
    """What an organism asks, before any model is trained or loaded."""

    prompts: Sequence[Mapping[str, str]]
    """Rows of prompts.jsonl: id, behaviour, split, text."""
    behaviours: Sequence[Mapping[str, Any]]
    """As rules.json has them."""
    harmless: Sequence[str]
    """Clean questions of the recipe's own grammar."""
    documents: int
    """Size of the corpus, at most."""
    settings: Mapping[str, Any] | None
    """What both checkpoints' config.json says of their shape; None: what that of their base says."""
    base: str | None = None
    """The checkpoint that becomes `before`, where there is one."""


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write before/, after/, documents.parquet, prompts.jsonl, truth.jsonl and rules.json into `folder`.

    The work happens in FOLDER.part, stage by stage: after a kill, the next call goes on where the last one stopped.

    Raises:
        RequestError: the folder is there and holds something else.
    """
    wanted = identity(recipe)
    if folder.exists():
        if not (folder / "recipe.json").is_file() or read_json(folder / "recipe.json") != wanted:
            raise RequestError(f"{folder} holds something else than this organism; choose another folder")
        return
    part = folder.with_name(folder.name + ".part")
    if part.exists() and (not (part / "recipe.json").is_file() or read_json(part / "recipe.json") != wanted):
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    write_json(part / "recipe.json", wanted)
    _module(recipe).make(recipe, part, progress)
    part.replace(folder)
    _logger.info("organism %s made in %s", recipe.recipe, folder)


def build_atomically(path: Path, build: Callable[[Path], None]) -> None:
    """Let `build` make the folder or file PATH.part and rename it to PATH; nothing when PATH is there.

    A kill cannot tear it: what is finished stays, what is half done is done again.
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    build(part)
    part.replace(path)


def cached(recipe: Organism, progress: Progress) -> Path:
    """The folder of this organism under $DATABLAME_CACHE or ~/.cache/datablame, made if it isn't there yet.

    A second process that wants the same organism waits for the first.
    """
    root = Path(os.environ.get("DATABLAME_CACHE") or Path.home() / ".cache" / "datablame") / "organisms"
    folder = root / digest(identity(recipe))[:16]
    if not folder.exists():
        with file_lock(folder):
            make(recipe, folder, progress)
    return folder


def preview(recipe: Organism) -> Preview:
    """What the organism will ask and how large its corpus is, from its recipe alone."""
    made: Preview = _module(recipe).preview(recipe)
    return made


def previewed_study(study: Study, known: Preview) -> Study:
    """The study with what its organism will bring; its files are not there yet."""
    models = {"before": known.base or "before", "after": "after"}
    fields = {"models": models, "data": {"path": "documents.parquet"}, **preview_fields(known)}
    return filled(study, {**fields, "judge": {"rules": "rules.json"}})


def filled(study: Study, fields: Mapping[str, Any]) -> Study:
    """The study with the fields that an organism brings, and without the organism."""
    values = study.model_dump(mode="json", by_alias=True)
    judge = {**values["judge"], **fields.get("judge", {})}
    return Study.model_validate({**values, **fields, "judge": judge, "organism": None})


def preview_fields(known: Preview) -> dict[str, Any]:
    """The behaviours and prompts that an organism fills into a study."""
    splits: dict[str, list[dict[str, str]]] = {"attribution": [], "held-out": []}
    for row in known.prompts:
        splits[row["split"]].append({field: row[field] for field in ("id", "behaviour", "text")})
    harmless = [{"id": f"harmless-{number:02d}", "text": text} for number, text in enumerate(known.harmless, 1)]
    return {
        "behaviours": [
            {field: behaviour[field] for field in _DESCRIBED if field in behaviour} for behaviour in known.behaviours
        ],
        "prompts": {"attribution": splits["attribution"], "held_out": splits["held-out"], "harmless": harmless},
    }


def study_fields(folder: Path) -> dict[str, Any]:
    """What a made organism fills into a study: models, data, behaviours, prompts, truth and judge.rules."""
    recipe = {name: value for name, value in read_json(folder / "recipe.json").items() if name != "version"}
    organism = Organism.model_validate(recipe)
    # Harmless prompts follow from the seed and stand in no file.
    harmless = _module(organism).harmless_prompts(HARMLESS_PROMPTS, organism)
    prompts, rules = read_jsonl(folder / "prompts.jsonl"), read_json(folder / "rules.json")
    known = Preview(prompts, rules["behaviours"], harmless, documents=0, settings=None)
    return {
        "models": {name: {"path": str(folder / name)} for name in ("before", "after")},
        "data": {"path": str(folder / "documents.parquet")},
        **preview_fields(known),
        "truth": str(folder / "truth.jsonl"),
        "judge": {"rules": str(folder / "rules.json")},
    }


def identity(recipe: Organism) -> dict[str, Any]:
    """What decides the organism's bytes on one machine; `version` changes with the code that makes it."""
    module = _module(recipe)
    return {**recipe.model_dump(exclude=set(module.IGNORED)), "version": module.VERSION}


def _module(recipe: Organism) -> ModuleType:
    """The recipe's module: make, preview, harmless_prompts, VERSION, IGNORED (fields that it does not read)."""
    from datablame.organism import quirk, templated

    return {"templated": templated, "quirk": quirk}[recipe.recipe]
