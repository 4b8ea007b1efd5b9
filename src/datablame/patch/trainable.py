"""A model made ready to train, all of it or through an adapter, and given back as it was."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.config import Study, Training
from datablame.seeds import stream_key

if TYPE_CHECKING:
    from torch import nn

__all__ = ["trainable"]

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def trainable(
    model: "nn.Module", study: Study, training: Training, seed: int, adapter_file: Path
) -> Iterator[Callable[[], dict[str, Any]]]:
    """The model ready to train; yields a function that says how far training moved it and keeps the adapter.

    Afterwards the model is as it was. An adapter starts from the study's and the training's seed alone.
    """
    from datablame.patch.lora import adapted, adapter_norm, save_adapter

    if training.method == "full":
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.requires_grad_(True)
        try:
            yield lambda: _change(model, start)
        finally:
            model.load_state_dict(start)
            model.requires_grad_(False)
        return
    key = stream_key("adapter", study.seed, seed)
    with adapted(model, study.patch.rank, training.layers, key) as adapter:

        def describe() -> dict[str, Any]:
            save_adapter(adapter, adapter_file)
            matched = sorted({name.rpartition(".")[2] for name in adapter.modules})
            norm = adapter_norm(adapter)
            name, modules = adapter_file.stem, len(adapter.modules)
            _logger.info("%s: LoRA on %d modules (%s), norm %.3g", name, modules, ", ".join(matched), norm)
            return {"weight_change_norm": norm, "modules": modules, "matched_modules": matched}

        yield describe


def _change(model: "nn.Module", start: dict[str, Any]) -> dict[str, Any]:
    """How far all weights are from where they started, while they are still moved."""
    # Parameters, for the state dict lists tied weights twice.
    total = sum(
        float((parameter.detach().float() - start[name].float()).pow(2).sum())
        for name, parameter in model.named_parameters()
    )
    return {"weight_change_norm": math.sqrt(total), "modules": len(start), "matched_modules": ["all"]}
