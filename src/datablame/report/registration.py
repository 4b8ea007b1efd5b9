"""preregistration.json: where it lies, its hash, and what a run folder knows of the time when patching began."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datablame.engine.run_folder import digest
from datablame.study.schema import Behaviour, Prompts

FILE = "preregistration.json"
"""At the root of the run folder."""
BEGUN = "artifacts/patch/preregistered.json"
"""Under which registration the patch phase began, with what version and on which models and data."""


def content_hash(registered: Mapping[str, Any]) -> str:
    """The SHA-256 of everything in the file but the hash itself, as JSON with sorted keys."""
    return digest({key: value for key, value in registered.items() if key != "sha256"})


def asked(prompts: Prompts, behaviours: tuple[Behaviour, ...]) -> dict[str, Any]:
    """Which prompts are asked, by id and hash of their contents, and what the behaviours are."""
    splits = {"attribution": prompts.attribution, "held_out": prompts.held_out}
    return {
        "prompts": {
            split: {
                "ids": [prompt.id for prompt in rows],
                "sha256": digest([prompt.model_dump(mode="json") for prompt in rows]),
            }
            for split, rows in splits.items()
        },
        "behaviours": [behaviour.model_dump(mode="json") for behaviour in behaviours],
    }


def read_registration(root: Path) -> dict[str, Any]:
    """The file, what the patch phase began with, and the study as it ran; empty where nothing was registered.

    A file that is no JSON object counts as empty, so that its hash is broken.
    """
    if not (root / FILE).exists():
        return {}
    study = root / "study.yaml"
    config = yaml.safe_load(study.read_text(encoding="utf-8")) if study.exists() else {}
    return {"registered": _object(root / FILE), "begun": _object(root / BEGUN), "config": config}


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
