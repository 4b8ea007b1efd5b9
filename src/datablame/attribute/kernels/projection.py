"""Gradients after random projection: approximate, small enough to keep, so that later queries need no model.

A layer's gradient G^T A becomes (G R)^T (A S) with R and S normal of variance 1/p, so that dot products keep their
expectation (Johnson and Lindenstrauss 1984; on both sides of a layer as in LoGra, Choe et al. 2024). Of L layers a
document keeps L p^2 numbers, and its cosine has a standard error of about 1 / (p sqrt(L)).

An index keeps them on disk in files that are named by what they hold, so that nothing has to be kept up to date: the
hash of the weights, the layers, the projection and the documents' tokens. Another study with other behaviours, prompts
or samples finds the files of the same documents and makes no pass over them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.hooks import linears
from datablame.attribute.kernels.per_example import Directions, Similarities, per_example_pass
from datablame.attribute.tensor_files import save
from datablame.engine.files import digest
from datablame.models.chat import Encoded, Preference, answers
from datablame.seeds import generator

_INDEX_FORMAT = 1


class Projection(NamedTuple):
    """For each layer what its output gradients (first) and its inputs (second) are multiplied with."""

    sides: Mapping[str, tuple[Float[Tensor, "outputs rows"], Float[Tensor, "inputs columns"]]]

    @property
    def numbers(self) -> int:
        """How many numbers a document keeps."""
        return sum(out.shape[1] * into.shape[1] for out, into in self.sides.values())


class Projected(NamedTuple):
    """Of every document: its projected gradient at unit norm, that norm, its loss (nats), its mean hidden state."""

    units: Float[Tensor, "documents numbers"]
    norms: Float[Tensor, " documents"]
    losses: Float[Tensor, " documents"]
    states: Float[Tensor, "documents width"]


def projection_of(model: Any, blocks: Sequence[int], size: int) -> Projection:
    """The matrices of the chosen blocks, the same in every study; a side no wider than `size` is left as it is."""
    sides = {}
    for name, layer in linears(model, blocks).items():
        device = layer.weight.device
        sides[name] = (
            _matrix(layer.out_features, size, f"{name} outputs").to(device),
            _matrix(layer.in_features, size, f"{name} inputs").to(device),
        )
    return Projection(sides)


def _matrix(width: int, size: int, side: str) -> Float[Tensor, "width size"]:
    if width <= size:
        return torch.eye(width)
    noise = generator("projection", side, size).standard_normal((width, size), dtype=np.float32)
    matrix: Tensor = torch.from_numpy(noise) / size**0.5
    return matrix


def projected(
    model: Any,
    documents: Sequence[Encoded | Preference],
    projection: Projection,
    blocks: Sequence[int],
    batch_tokens: int,
    layer: int,
) -> Projected:
    """Each document's projected gradient, kept in float16 at unit norm, with what else the pass tells.

    Raises:
        PhaseError: a single document does not fit in memory.
    """
    columns: dict[str, slice] = {}
    for name, (out, into) in projection.sides.items():
        start = max((each.stop for each in columns.values()), default=0)
        columns[name] = slice(start, start + out.shape[1] * into.shape[1])

    def add(rows: Tensor, name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
        out, into = projection.sides[name]
        formed = (deltas.float() @ out).transpose(1, 2) @ (inputs.float() @ into)
        rows[:, columns[name]] += formed.flatten(1).to(rows.device) / scale

    passed = per_example_pass(model, documents, blocks, batch_tokens, projection.numbers, add, layer)
    norms = torch.linalg.vector_norm(passed.rows, dim=1)
    units = torch.where(norms[:, None] > 0, passed.rows / norms[:, None], 0).to(torch.float16)
    return Projected(units, norms, passed.losses, passed.states)


def projected_directions(directions: Directions, projection: Projection) -> Float[Tensor, "behaviours numbers"]:
    """The same projection of what documents are compared with."""
    parts = []
    for name, (out, into) in projection.sides.items():
        parts.append((out.T @ directions[name].to(out.device) @ into).flatten(1).cpu())
    return torch.cat(parts, 1)


def compared(documents: Projected, towards: Float[Tensor, "behaviours numbers"]) -> Similarities:
    """What `per_example.similarities` gives, up to the error of the projection; no model is needed."""
    dots = (documents.units.float() @ towards.T).double() * documents.norms[:, None]
    return Similarities(dots, documents.norms, documents.losses, documents.states)


def weights_digest(model: Any) -> str:
    """The SHA-256 of all weights with their names, shapes and types."""
    digested = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digested.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digested.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digested.hexdigest()


def index_key(
    weights: str, blocks: Sequence[int], layer: int, size: int, documents: Sequence[Encoded | Preference]
) -> str:
    """What projected gradients depend on: the batches that they were made in change them by rounding only."""
    tokens = [[[each.prompt_tokens, *each.ids] for each in answers(document)] for document in documents]
    return digest([_INDEX_FORMAT, weights, list(blocks), layer, size, tokens])


def read_or_made(folder: Path, key: str, make: Callable[[], Projected]) -> Projected:
    """The file of that key, or what `make` makes, which is then written there whole.

    A file that cannot be read is made again.

    Raises:
        PhaseError: a number that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / f"{key}.safetensors"
    try:
        return Projected(**load_file(path))
    except (OSError, SafetensorError):
        made = make()
        save(path, made._asdict(), "the gradients of the documents", shared=True)
        return made
