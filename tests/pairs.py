"""Pairs of checkpoints in folders, loaded as a study loads them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.config.schema import Models, Study

if TYPE_CHECKING:
    from datablame.models.pair import Pair


def study_of(before: Path | str, after: Path | str, **models: Any) -> Study:
    """The least study of two checkpoints."""
    prompts = [{"id": name, "behaviour": "walk", "text": f"name a calm walk , {name} ."} for name in ("a1", "h1")]
    return Study.model_validate(
        {
            "name": "tiny",
            "models": models_of(before, after, **models),
            "data": {"path": "unused.parquet"},
            "behaviours": [{"id": "walk", "description": "recommends a walk"}],
            "prompts": {"attribution": prompts[:1], "held_out": prompts[1:]},
        }
    )


def models_of(before: Path | str, after: Path | str, /, **models: Any) -> Models:
    """The models of the least study."""
    return Models.model_validate({"before": str(before), "after": str(after), "device": "cpu", **models})


def loaded(before: Path | str, after: Path | str, **models: Any) -> "Pair":
    """Both checkpoints."""
    from datablame.models.pair import load_pair

    return load_pair(models_of(before, after, **models))
