"""Projected gradients on disk: files that are named by what they hold, so that nothing has to be kept up to date.

A file's name is the hash of the weights, the layers, the projection and the documents' tokens. Another study with other
behaviours, prompts or samples finds the files of the same documents and makes no pass over them.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datablame.attribute.kept import not_finite
from datablame.attribute.kernels.projection import Projected
from datablame.engine.run_folder import digest
from datablame.models.chat import Encoded, Preference, answers

_FORMAT = 1
_FIELDS = Projected._fields


def weights_digest(model: Any) -> str:
    """The SHA-256 of all weights with their names, shapes and types."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def index_key(
    weights: str, blocks: Sequence[int], layer: int, size: int, documents: Sequence[Encoded | Preference]
) -> str:
    """What projected gradients depend on: the batches that they were made in change them by rounding only."""
    tokens = [[[each.prompt_tokens, *each.ids] for each in answers(document)] for document in documents]
    return digest([_FORMAT, weights, list(blocks), layer, size, tokens])


def kept_or_made(folder: Path, key: str, make: Callable[[], Projected]) -> Projected:
    """The file of that key, or what `make` makes, which is then written there whole.

    A file that cannot be read is made again.

    Raises:
        PhaseError: a number that is not finite.
    """
    path = folder / f"{key}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    made = make()
    if not all(bool(tensor.isfinite().all()) for tensor in made):
        raise not_finite("the gradients of the documents")
    _write(path, made)
    return made


def _read(path: Path) -> Projected | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return Projected(*(file.get_tensor(name) for name in _FIELDS))
    except (OSError, SafetensorError):
        return None


def _write(path: Path, made: Projected) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file({name: tensor.contiguous() for name, tensor in made._asdict().items()}, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
