"""LoRA adapters put on a base and taken off again, so that one base serves every arm."""

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from datablame.engine.files import write_atomic
from datablame.models.blocks import decoder_blocks
from datablame.models.source import refusal

SCALE = 2
"""lora_alpha / rank, the common choice: what B A is multiplied by."""


class Start(NamedTuple):
    """What an adapter starts from: its rank, the decoder blocks that it is in (none: all), the key of A's stream."""

    rank: int
    layers: tuple[int, ...] | None
    key: int


class Adapter(NamedTuple):
    """The wrapped model that owns the adapter, and the modules that got one."""

    owner: Any
    modules: tuple[str, ...]


def target_modules(model: nn.Module, layers: tuple[int, ...] | None) -> list[str]:
    """Names of the Linears in the chosen decoder blocks (None: all); RequestError where one is missing."""
    blocks = decoder_blocks(model)
    for layer in layers or ():
        if not 0 <= layer < len(blocks):
            raise refusal("no_block", layer=layer, last=len(blocks) - 1)
    chosen = [blocks[layer] for layer in layers] if layers is not None else blocks
    inside = {id(module) for block in chosen for module in block.modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    if not names:
        raise refusal("no_linears")
    return names


@contextlib.contextmanager
def adapted(model: nn.Module, rank: int, layers: tuple[int, ...] | None, key: int) -> Iterator[Adapter]:
    """The model with a fresh LoRA adapter (Hu et al. 2021), A random, B zero, alone trainable; off again afterwards."""
    names = target_modules(model, layers)
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(key % (1 << 63))
        owner = get_peft_model(model, config)
    try:
        yield Adapter(owner, tuple(names))
    finally:
        owner.unload()


def factors_of(adapter: Adapter) -> dict[str, tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]:
    """A and B of every adapted module, by its name in the model; the adapter's own tensors."""
    base = adapter.owner.get_base_model()
    layers = {name: base.get_submodule(name) for name in adapter.modules}
    return {name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight) for name, layer in layers.items()}


@torch.no_grad()
def set_factors(adapter: Adapter, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Give an adapter the weights of one that was trained elsewhere."""
    for name, tensors in factors_of(adapter).items():
        for tensor, values in zip(tensors, factors[name], strict=True):
            tensor.copy_(values)


@torch.no_grad()
def adapter_norm(adapter: Adapter) -> float:
    """Frobenius norm of the change of the weights, over all adapted modules."""
    layers = (module for module in adapter.owner.modules() if hasattr(module, "get_delta_weight"))
    return math.sqrt(sum(float(layer.get_delta_weight("default").float().pow(2).sum()) for layer in layers))


def save_adapter(adapter: Adapter, path: Path) -> None:
    """Write the adapter's tensors as safetensors, with rank, scale and modules in its metadata."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous() for name, tensor in get_peft_model_state_dict(adapter.owner).items()}
    config = adapter.owner.peft_config["default"]
    about = {"lora_alpha": config.lora_alpha, "r": config.r, "target_modules": sorted(adapter.modules)}
    # One entry: the order of several would differ between runs.
    write_atomic(path, save(tensors, {"adapter_config": json.dumps(about)}))
