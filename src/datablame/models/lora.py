"""LoRA adapters put on a base and taken off again, so that one base serves every arm."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from datablame.engine.files import write_atomic, write_json
from datablame.models.blocks import decoder_blocks
from datablame.models.products import products

SCALE = 2
"""lora_alpha / rank, the common choice: what B A is multiplied by."""


class Start(NamedTuple):
    """What an adapter starts from: its rank, the decoder blocks that it is in (none: all), the key of A's stream."""

    rank: int
    layers: tuple[int, ...] | None
    key: int


class Targets(NamedTuple):
    """What LoRA adapts, by name in the model: layers, and parameters that hold a matrix for each expert."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]


class Adapter(NamedTuple):
    """The wrapped model that owns the adapter, and what got one."""

    owner: Any
    targets: Targets


def targets_of(model: nn.Module, layers: tuple[int, ...] | None) -> Targets:
    """The products of the chosen decoder blocks (None: all)."""
    chosen = products(model, range(len(decoder_blocks(model))) if layers is None else layers)
    names = {module: name for name, module in model.named_modules()}
    every = [(names[module], product) for product in chosen.values() for module in product.modules]
    parameters = dict.fromkeys(f"{name}.{product.parameter}" for name, product in every if product.expert is not None)
    return Targets(tuple(name for name, product in every if product.expert is None), tuple(parameters))


@contextlib.contextmanager
def adapted(model: nn.Module, rank: int, layers: tuple[int, ...] | None, key: int) -> Iterator[Adapter]:
    """The model with a fresh LoRA adapter (Hu et al. 2021), A random, B zero, alone trainable; off again afterwards."""
    targets = targets_of(model, layers)
    config = LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        lora_dropout=0.0,
        target_modules=list(targets.modules),
        target_parameters=list(targets.parameters) or None,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name, and tells that a Conv1D is one.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        torch.manual_seed(key % (1 << 63))
        with _without_type(model):
            owner = get_peft_model(model, config)
    try:
        yield Adapter(owner, targets)
    finally:
        owner.unload()


@contextlib.contextmanager
def _without_type(model: Any) -> Iterator[None]:
    """Inside, the model's config does not say its type.

    By it peft takes layers named as experts were in transformers 4 for experts, dense ones and shared experts too, and
    refuses a layer of Mamba that its fast kernels pass by: `products` has only what a pass calls.
    """
    values = vars(model.config)
    own = {"model_type": values["model_type"]} if "model_type" in values else {}
    values["model_type"] = None
    try:
        yield
    finally:
        del values["model_type"]
        values.update(own)


def factors_of(adapter: Adapter) -> dict[str, tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]:
    """A and B of everything adapted, by its name in the model; the adapter's own tensors.

    Of experts peft has them side by side: A is (experts rank, inputs) and B (outputs, rank experts).
    """
    base, layers = adapter.owner.get_base_model(), dict[str, Any]()
    for name in adapter.targets.modules:
        layers[name] = base.get_submodule(name)
    for name in adapter.targets.parameters:
        module, _, parameter = name.rpartition(".")
        layers[name] = base.get_submodule(module)
        # Each wrapper has one parameter, and the next inside.
        while layers[name].parameter_name != parameter:
            layers[name] = layers[name].base_layer
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


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the adapter as `peft.PeftModel.from_pretrained(base, folder)` reads it; its base's path is not in it."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous() for name, tensor in get_peft_model_state_dict(adapter.owner).items()}
    config = adapter.owner.peft_config["default"].to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    # The order of a set would differ between runs.
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    write_json(folder / CONFIG_NAME, plain)
    write_atomic(folder / SAFETENSORS_WEIGHTS_NAME, save(tensors, {"format": "pt"}))
