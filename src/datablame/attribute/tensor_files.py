"""Tensors of unfinished work on disk: only finite numbers, whole files or none."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datablame.engine.files import write_atomic
from datablame.errors import PhaseError

if TYPE_CHECKING:
    from torch import Tensor

_STATES = "states"


def save(path: Path, tensors: "dict[str, Tensor]", what: str, *, shared: bool = False) -> None:
    """Write tensors whole or not at all; `shared`: other processes may write the same file.

    Raises:
        PhaseError: one of them, which the message calls `what`, holds a number that is not finite.
    """
    from safetensors.torch import save as to_bytes

    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise not_finite(what)
    write_atomic(path, to_bytes({name: each.contiguous() for name, each in tensors.items()}), shared=shared)


def save_states(path: Path, states: "Tensor", what: str) -> None:
    """Write one row for each text."""
    save(path, {_STATES: states}, what)


def load_states(path: Path) -> NDArray[np.float64]:
    """What `save_states` wrote."""
    from safetensors.numpy import load_file

    return load_file(path)[_STATES].astype(np.float64)


def not_finite(what: str) -> PhaseError:
    """The error of numbers that overflowed."""
    return PhaseError(f"{what} are not finite; set the dtype of models.before and models.after to float32")
