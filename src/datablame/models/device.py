"""Where models run, in which type their weights are held, and how much room there is."""

import os
import warnings

import torch
from torch import Tensor

from datablame.engine.machine import VISIBLE, memory_bytes
from datablame.models.source import refusal

_BFLOAT16_FROM = (8, 0)
"""The least compute capability that multiplies bfloat16; a T4 has 7.5."""


def chosen_device(name: str) -> str:
    """`cpu`, `cuda` or `mps`; `auto` is a CUDA card if torch sees one, else the CPU.

    Raises RequestError of one that torch lacks, and of a card that is there and cannot be had.
    """
    with warnings.catch_warnings():
        # A driver that is too old for this torch is a warning; then there is no usable card.
        warnings.simplefilter("ignore")
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = ("cuda" if available["cuda"] else "cpu") if name == "auto" else name
    if not available[name]:
        raise refusal("no_device", device=name, version=torch.__version__)
    if name == "cuda":
        try:
            torch.cuda.mem_get_info()
        except RuntimeError as error:
            # Of a card in exclusive mode, or a broken one.
            why = str(error).splitlines()[0]
            raise refusal("busy_device", visible=os.environ.get(VISIBLE, "the first"), why=why) from None
    return name


def weights_dtype(name: str, stored: torch.dtype | None, device: str) -> torch.dtype:
    """How weights are held; `auto`: float32 on a CPU, else as stored, float16 where a card lacks bfloat16."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device == "cpu" or stored not in (torch.float16, torch.bfloat16):
        return torch.float32
    if stored is torch.float16 or device == "mps":
        return torch.float16
    return torch.bfloat16 if torch.cuda.get_device_capability() >= _BFLOAT16_FROM else torch.float16


def free_bytes(device: str) -> int:
    """Memory that new tensors on the device can have now; on a CPU what the container allows at most."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return min(int(psutil.virtual_memory().available), memory_bytes())


def offload_device(size_bytes: int, device: torch.device) -> torch.device:
    """Where to keep what every batch needs: on the device while it takes at most half of what is free, else the CPU."""
    fits = device.type == "cpu" or size_bytes <= free_bytes(device.type) // 2
    return device if fits else torch.device("cpu")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python raised the error because memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU where it has no float64 (Apple's)."""
    return torch.device("cpu") if device.type == "mps" else device


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor as float64 on a device that has it."""
    return tensor.to(with_float64(tensor.device)).double()
