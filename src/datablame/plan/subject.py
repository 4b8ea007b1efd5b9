"""What a study works on, in numbers: checkpoints, prompts and documents, before anything is loaded."""

from pathlib import Path
from typing import NamedTuple

from datablame.plan.shapes import Found, Shape, find
from datablame.study.schema import Data, ModelRef, Organism, Study

_ORGANISM = "the organism's recipe"


class Checkpoint(NamedTuple):
    """One of the two models; `found` is None where its shape cannot be known here."""

    path: str
    found: Found | None
    dtype: str
    weight_bytes: int
    """Bytes of one weight in memory."""


class PromptSize(NamedTuple):
    """A prompt's behaviour and length."""

    behaviour: str
    characters: int


class Subject(NamedTuple):
    """The sizes that every count starts from."""

    before: Checkpoint
    after: Checkpoint
    one_base: bool
    """Whether after is an adapter on before."""
    attribution: tuple[PromptSize, ...]
    held_out: tuple[PromptSize, ...]
    documents: int | None
    """The pool; None where it is a dataset of the hub that is taken whole."""
    documents_source: str
    answers: int
    """Of a document: 2 for preference pairs, 1 otherwise."""


def subject_of(study: Study, *, on_gpu: bool) -> Subject:
    """The subject of a study; an organism is not made, its recipe is read."""
    if study.organism is not None:
        return _organism(study.organism)
    assert study.models is not None
    assert study.data is not None
    assert study.prompts is not None
    documents, source = _documents(study.data)
    return Subject(
        before=_checkpoint(study.models.before, on_gpu),
        after=_checkpoint(study.models.after, on_gpu),
        one_base=(Path(study.models.after.path).expanduser() / "adapter_config.json").is_file(),
        attribution=tuple(PromptSize(each.behaviour, len(each.text)) for each in study.prompts.attribution),
        held_out=tuple(PromptSize(each.behaviour, len(each.text)) for each in study.prompts.held_out),
        documents=documents,
        documents_source=source,
        answers=2 if _is_pairs(study.data) else 1,
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
    found = find(reference)
    if reference.dtype == "auto":
        stored = found.shape.stored_bytes if found else None
        return Checkpoint(reference.path, found, "auto", (stored or 2) if on_gpu else 4)
    return Checkpoint(reference.path, found, reference.dtype, 4 if reference.dtype == "float32" else 2)


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


def _organism(organism: Organism) -> Subject:
    if organism.recipe == "quirk":
        return _quirk(organism)
    from datablame.organism.mixtures import AFTER, held_back_prompts, scaled
    from datablame.organism.planted import BEHAVIOURS
    from datablame.organism.templated import ATTRIBUTION_PROMPTS, HELD_OUT_PROMPTS
    from datablame.organism.tiny_model import EMBEDDING_ROWS, HEADS, HIDDEN, INTERMEDIATE, LAYERS, POSITIONS

    shape = Shape("olmo2", LAYERS, HIDDEN, INTERMEDIATE, HEADS, HEADS, HIDDEN // HEADS, EMBEDDING_ROWS, POSITIONS)
    attribution, held_out = [], []
    for behaviour in BEHAVIOURS:
        texts = held_back_prompts(behaviour, ATTRIBUTION_PROMPTS + HELD_OUT_PROMPTS, organism.seed, ())
        sizes = [PromptSize(behaviour.id, len(text)) for text in texts]
        attribution += sizes[:ATTRIBUTION_PROMPTS]
        held_out += sizes[ATTRIBUTION_PROMPTS:]
    return Subject(
        before=Checkpoint("before", Found(shape, _ORGANISM), "float32", 4),
        after=Checkpoint("after", Found(shape, _ORGANISM), "float32", 4),
        one_base=False,
        attribution=tuple(attribution),
        held_out=tuple(held_out),
        documents=scaled(AFTER, organism).documents,
        documents_source=_ORGANISM,
        answers=1,
    )


def _quirk(organism: Organism) -> Subject:
    from datablame.organism.gguf import HUB_ID
    from datablame.organism.quirk import DECOYS, OTHER, TRAVEL
    from datablame.organism.quirk_texts import prompt_rows

    base = organism.base or HUB_ID
    found = find(ModelRef(path=base))
    rows = prompt_rows()
    sizes = {
        split: tuple(PromptSize(row["behaviour"], len(row["text"])) for row in rows if row["split"] == split)
        for split in ("attribution", "held-out")
    }
    written = sum(max(1, round(organism.scale * count)) for count in (TRAVEL, OTHER, DECOYS))
    return Subject(
        before=Checkpoint(base, found, "float32", 4),
        after=Checkpoint(f"{base}, fine-tuned", found, "float32", 4),
        one_base=False,
        attribution=sizes["attribution"],
        held_out=sizes["held-out"],
        documents=written + organism.planted,
        documents_source=f"{_ORGANISM}, at most: questions that the base does not finish to answer are left out",
        answers=1,
    )
