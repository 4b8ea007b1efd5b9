"""What safetensors files say of themselves without being loaded: whole or torn, their tensors, types and a hash."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from datablame.engine.files import digest

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
_MOST_HEADER_BYTES = 100_000_000
"""As in the safetensors library."""
_HASHED_BYTES = 4096
"""Of each tensor, from its beginning: training changes them, and a checkpoint is hashed without being read whole."""


class Header(NamedTuple):
    """Where a file's tensors begin, and type, shape and place of each by its name."""

    text: bytes
    start: int
    tensors: dict[str, dict[str, Any]]


def is_pointer(file: Path) -> bool:
    """Whether a file is what Git LFS leaves in place of one that was not pulled."""
    if not file.is_file() or file.stat().st_size > _POINTER_BYTES:
        return False
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def header(file: Path) -> Header:
    """The header of a whole safetensors file; ValueError says why it is none."""
    if is_pointer(file):
        raise ValueError(f"{file.name} is a Git LFS pointer, not the file itself; run git lfs pull there")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError(f"{file.name} is torn or no safetensors file; fetch or save it again")
        text = stream.read(length)
    try:
        tensors = {name: tensor for name, tensor in json.loads(text).items() if name != "__metadata__"}
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file.name} has a broken header; fetch or save it again") from error
    if end != size:
        raise ValueError(f"{file.name} is torn, it has {size} of {end} bytes; fetch or save it again")
    return Header(text, 8 + length, tensors)


def weights_hash(folder: Path) -> str | None:
    """Of safetensors files the headers, sizes and first bytes of every tensor, hashed; None where there are none.

    ValueError of a file that is not whole.
    """
    files = []
    for file in sorted(folder.glob("[!.]*.safetensors")):
        text, start, tensors = header(file)
        sha = hashlib.sha256(text)
        with file.open("rb") as stream:
            for begin, end in sorted(tensor["data_offsets"] for tensor in tensors.values()):
                stream.seek(start + begin)
                sha.update(stream.read(min(_HASHED_BYTES, end - begin)))
        files.append([file.name, file.stat().st_size, sha.hexdigest()])
    return digest(files) if files else None


def stored_type(files: Iterable[Path]) -> str | None:
    """The type of most bytes of the files' matrices, as safetensors or GGUF name it; None where there is none."""
    found = Counter[str]()
    for file in files:
        if file.suffix == ".gguf":
            from gguf import GGUFReader

            for part in GGUFReader(file).tensors:
                found[part.tensor_type.name] += int(part.n_bytes) * (len(part.shape) > 1)
        else:
            for tensor in header(file).tensors.values():
                begin, end = tensor["data_offsets"]
                found[tensor["dtype"]] += (end - begin) * (len(tensor["shape"]) > 1)
    return max(found, key=lambda name: (found[name], name), default=None)
