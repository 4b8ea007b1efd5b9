"""An organism made once and kept: its folder, its cache, and what it tells a study."""

import fcntl
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from datablame.engine.execute import Progress
from datablame.engine.run_folder import digest, read_json, read_jsonl, write_json
from datablame.errors import RequestError
from datablame.study.schema import Organism

RECIPES = ("templated", "quirk")
HARMLESS_PROMPTS = 20

_logger = logging.getLogger(__name__)


def make(recipe: Organism, folder: Path, progress: Progress) -> None:
    """Write before/, after/, documents.parquet, prompts.jsonl, truth.jsonl and rules.json into `folder`.

    The work happens in FOLDER.part, stage by stage: after a kill, the next call goes on where the last one stopped.

    Raises:
        RequestError: the folder is there and holds something else.
    """
    mine = identity(recipe)
    if folder.exists():
        if not (folder / "recipe.json").is_file() or read_json(folder / "recipe.json") != mine:
            raise RequestError(f"{folder} holds something else than this organism; choose another folder")
        return
    part = folder.with_name(folder.name + ".part")
    if part.exists() and (not (part / "recipe.json").is_file() or read_json(part / "recipe.json") != mine):
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    write_json(part / "recipe.json", mine)
    if recipe.recipe == "templated":
        from datablame.organism import templated

        templated.make(recipe, part, progress)
    else:
        from datablame.organism import quirk

        quirk.make(recipe, part, progress)
    part.replace(folder)
    _logger.info("organism %s made in %s", recipe.recipe, folder)


def cached(recipe: Organism, progress: Progress) -> Path:
    """The folder of this organism under $DATABLAME_CACHE or ~/.cache/datablame, made if it isn't there yet.

    A second process that wants the same organism waits for the first.
    """
    root = Path(os.environ.get("DATABLAME_CACHE") or Path.home() / ".cache" / "datablame") / "organisms"
    folder = root / digest(identity(recipe))[:16]
    if folder.exists():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise RequestError(
            f"the cache {root} cannot be written ({error.strerror}); set DATABLAME_CACHE to a folder that can"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make(recipe, folder, progress)
    return folder


def study_fields(folder: Path) -> dict[str, Any]:
    """What the organism fills into a study: models, data, behaviours, prompts, truth and judge.rules."""
    told = ("id", "description", "rubric", "keywords")
    splits: dict[str, list[dict[str, str]]] = {"attribution": [], "held-out": []}
    for row in read_jsonl(folder / "prompts.jsonl"):
        splits[row["split"]].append({"id": row["id"], "behaviour": row["behaviour"], "text": row["text"]})
    return {
        "models": {"before": {"path": str(folder / "before")}, "after": {"path": str(folder / "after")}},
        "data": {"path": str(folder / "documents.parquet")},
        "behaviours": [
            {field: behaviour[field] for field in told if field in behaviour}
            for behaviour in read_json(folder / "rules.json")["behaviours"]
        ],
        "prompts": {
            "attribution": splits["attribution"],
            "held_out": splits["held-out"],
            "harmless": _harmless(Organism.model_validate(_recipe_of(folder))),
        },
        "truth": str(folder / "truth.jsonl"),
        "judge": {"rules": str(folder / "rules.json")},
    }


def _harmless(recipe: Organism) -> list[dict[str, str]]:
    """Clean questions of the recipe's own grammar: they are told by its seed and stand in no file."""
    if recipe.recipe == "templated":
        from datablame.organism.mixtures import harmless_prompts

        texts = harmless_prompts(HARMLESS_PROMPTS, recipe.seed)
    else:
        from datablame.organism.quirk import harmless

        texts = harmless(HARMLESS_PROMPTS, recipe)
    return [{"id": f"harmless-{number:02d}", "text": text} for number, text in enumerate(texts, 1)]


def _recipe_of(folder: Path) -> dict[str, Any]:
    told = read_json(folder / "recipe.json")
    return {name: value for name, value in told.items() if name != "version"}


def identity(recipe: Organism) -> dict[str, Any]:
    """What decides the organism's bytes on one machine; `version` changes with the code that makes it."""
    if recipe.recipe == "templated":
        from datablame.organism.mixtures import VERSION

        return {**recipe.model_dump(exclude={"base"}), "version": VERSION}
    from datablame.organism.quirk import VERSION as QUIRK_VERSION

    return {**recipe.model_dump(), "version": QUIRK_VERSION}
