"""What a study works on, in numbers: its world as far as it is known before anything is loaded, and its checkpoints."""

import os
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datablame.config.schema import Data, ModelRef, Study
from datablame.judge.choice import decide, has_key
from datablame.organism.make import Preview, preview, previewed_study
from datablame.plan.shapes import KnownShape, Shape, known_shape, shape_of
from datablame.world import World
from datablame.world.world import prompts_of

_RECIPE = "the organism's recipe"


class Checkpoint(NamedTuple):
    """One of the two models; `known` is None where its shape cannot be known here."""

    path: str
    known: KnownShape | None
    dtype: str
    weight_bytes: int
    """Bytes of one weight in memory."""

    @property
    def shape(self) -> Shape | None:
        """Its shape, where that is known."""
        return None if self.known is None else self.known.shape


class Subject(NamedTuple):
    """The sizes that every count starts from."""

    world: World
    """Without a pool, and without identities: nothing that a study names is read."""
    before: Checkpoint
    after: Checkpoint
    one_base: bool
    """Whether after is an adapter on before."""
    documents: int | None
    """The pool; None where it is a dataset of the hub that is taken whole."""
    documents_source: str
    answers: int
    """Of a document: 2 for preference pairs, 1 otherwise."""

    @property
    def study(self) -> Study:
        """The study, an organism resolved."""
        return self.world.study


def planned_world(study: Study, *, on_gpu: bool) -> World:
    """The world that phases would be given, as far as their counts hang on it; an organism is not made."""
    if study.organism is not None:
        study = previewed_study(study, preview(study.organism))
    return World(
        root=Path(os.devnull),
        study=study.model_copy(update={"prefilter": study.prefilter.on("cuda" if on_gpu else "cpu")}),
        prompts=prompts_of(study),
        truth=None,
        judge=decide(study, None, has_key()),
        identities={},
    )


def subject_of(study: Study, *, on_gpu: bool) -> Subject:
    """The subject of a study; of an organism the recipe is read."""
    world = planned_world(study, on_gpu=on_gpu)
    if study.organism is not None:
        return _organism(world, preview(study.organism))
    documents, source = _documents(world.data)
    return Subject(
        world=world,
        before=_checkpoint(world.models.before, on_gpu),
        after=_checkpoint(world.models.after, on_gpu),
        one_base=(Path(world.models.after.path).expanduser() / "adapter_config.json").is_file(),
        documents=documents,
        documents_source=source,
        answers=2 if _is_pairs(world.data) else 1,
    )


def _organism(world: World, recipe: Preview) -> Subject:
    if recipe.settings is None:
        known, limit = known_shape(world.models.before), ", at most: the base does not finish every answer"
    else:
        shape, limit = shape_of(recipe.settings), ""
        known = None if shape is None else KnownShape(shape, _RECIPE)
    return Subject(
        world=world,
        before=Checkpoint(world.models.before.path, known, "float32", 4),
        after=Checkpoint(f"{recipe.base}, fine-tuned" if recipe.base else "after", known, "float32", 4),
        one_base=False,
        documents=recipe.documents,
        documents_source=f"{_RECIPE}{limit}",
        answers=1,
    )


def _is_pairs(data: Data) -> bool:
    """From the columns of a Parquet file or those that the study names; a hub set's name has to tell."""
    if (footer := _parquet(data)) is not None:
        return "rejected" in (*footer.schema.to_arrow_schema().names, *data.columns)
    return "rejected" in data.columns or "preference" in data.path


def _checkpoint(reference: ModelRef, on_gpu: bool) -> Checkpoint:
    known = known_shape(reference)
    if reference.dtype == "auto":
        stored = known.shape.stored_bytes if known else None
        return Checkpoint(reference.path, known, "auto", (stored or 2) if on_gpu else 4)
    return Checkpoint(reference.path, known, reference.dtype, 4 if reference.dtype == "float32" else 2)


def _documents(data: Data) -> tuple[int | None, str]:
    path = Path(data.path).expanduser()
    rows = None
    if (footer := _parquet(data)) is not None:
        rows = int(footer.num_rows)
    elif path.is_file() and path.suffix != ".parquet":
        with path.open("rb") as file:
            rows = sum(1 for line in file if line.strip())
    if rows is None:
        return data.documents, "data.documents" if data.documents else "a whole dataset, unknown until it is read"
    return (rows, str(path)) if data.documents is None or data.documents >= rows else (data.documents, "data.documents")


def _parquet(data: Data) -> pq.FileMetaData | None:
    """What the footer of a local Parquet file says; None where there is none to read."""
    path = Path(data.path).expanduser()
    try:
        return pq.read_metadata(path) if path.is_file() and path.suffix == ".parquet" else None
    except (OSError, pa.ArrowException):
        return None
