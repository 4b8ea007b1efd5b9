"""What a study works on, in numbers: its world as far as it is known before anything is loaded, and its checkpoints."""

from pathlib import Path
from typing import NamedTuple

from datablame.organism.make import preview as recipe_of
from datablame.organism.make import previewed_study
from datablame.plan.shapes import KnownShape, Shape, known_shape, shape_of
from datablame.study.schema import Data, ModelRef, Organism, Study
from datablame.world import World
from datablame.world.freeze import preview

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
    """Without a pool."""
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


def subject_of(study: Study, *, on_gpu: bool) -> Subject:
    """The subject of a study; an organism is not made, its recipe is read."""
    if study.organism is not None:
        return _organism(study, study.organism)
    assert study.models is not None
    assert study.data is not None
    documents, source = _documents(study.data)
    return Subject(
        world=preview(study, Path("runs") / study.name),
        before=_checkpoint(study.models.before, on_gpu),
        after=_checkpoint(study.models.after, on_gpu),
        one_base=(Path(study.models.after.path).expanduser() / "adapter_config.json").is_file(),
        documents=documents,
        documents_source=source,
        answers=2 if _is_pairs(study.data) else 1,
    )


def _organism(study: Study, organism: Organism) -> Subject:
    recipe = recipe_of(organism)
    resolved = previewed_study(study, recipe)
    assert resolved.models is not None
    if recipe.settings is None:
        known, limit = known_shape(resolved.models.before), ", at most: the base does not finish every answer"
    else:
        shape, limit = shape_of(recipe.settings), ""
        known = None if shape is None else KnownShape(shape, _RECIPE)
    return Subject(
        world=preview(resolved, Path("runs") / study.name),
        before=Checkpoint(resolved.models.before.path, known, "float32", 4),
        after=Checkpoint(f"{recipe.base}, fine-tuned" if recipe.base else "after", known, "float32", 4),
        one_base=False,
        documents=recipe.documents,
        documents_source=f"{_RECIPE}{limit}",
        answers=1,
    )


def _is_pairs(data: Data) -> bool:
    """From the columns of a Parquet file or those that the study names; a hub set's name has to tell."""
    path = Path(data.path).expanduser()
    if path.is_file() and path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return "rejected" in (*pq.read_schema(path).names, *data.columns)
        except (OSError, pa.ArrowException):
            return False
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
    if path.is_file() and path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.is_file():
        with path.open("rb") as file:
            rows = sum(1 for line in file if line.strip())
    if rows is None:
        return data.documents, "data.documents" if data.documents else "a whole dataset, unknown until it is read"
    return (rows, str(path)) if data.documents is None or data.documents >= rows else (data.documents, "data.documents")


def _parquet_rows(path: Path) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return None
