"""Tensors of unfinished work on disk: only finite numbers, whole files or none."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from datablame.errors import PhaseError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


_STATES = "activations"


def save(path: Path, tensors: "dict[str, Tensor]", what: str) -> None:
    """Write tensors whole or not at all.

    Raises:
        PhaseError: one of them, which the message calls `what`, holds a number that is not finite.
    """
    from safetensors.torch import save_file

    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise not_finite(what)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def states(path: Path) -> "NDArray[np.float64]":
    """The tensor `activations` of a file, a row for each text."""
    import numpy as np
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        found: NDArray[np.float64] = file.get_tensor(_STATES).astype(np.float64)
    return found


def not_finite(what: str) -> PhaseError:
    """The error of numbers that overflowed."""
    return PhaseError(f"{what} are not finite; set the dtype of models.before and models.after to float32")
