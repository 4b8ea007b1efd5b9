"""A model made ready to train, all of it, or given an adapter that was trained, and given back as it was."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from datablame.models.lora import Start
    from datablame.patch.side_by_side import Factors


_logger = logging.getLogger(__name__)

Describe = Callable[[], dict[str, Any]]
"""Says how far training moved the model."""


@contextlib.contextmanager
def free_to_move(model: "nn.Module") -> Iterator[Describe]:
    """The model with all weights trainable; afterwards they are what they were."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.requires_grad_(True)
    try:
        yield lambda: _change(model, start)
    finally:
        model.load_state_dict(start)
        model.requires_grad_(False)


@contextlib.contextmanager
def carrying(model: "nn.Module", start: "Start", factors: "Factors", file: Path) -> Iterator[Describe]:
    """The model with a trained adapter, which describing it keeps in a file; afterwards the model is as it was."""
    from datablame.models.lora import adapted, adapter_norm, save_adapter, set_factors

    with adapted(model, *start) as adapter:
        set_factors(adapter, factors)

        def describe() -> dict[str, Any]:
            save_adapter(adapter, file)
            matched = sorted({name.rpartition(".")[2] for name in adapter.modules})
            norm = adapter_norm(adapter)
            _logger.info("%s: LoRA on %d modules (%s), norm %.3g", file.stem, len(factors), ", ".join(matched), norm)
            return {"weight_change_norm": norm, "modules": len(factors), "matched_modules": matched}

        yield describe


def _change(model: "nn.Module", start: dict[str, Any]) -> dict[str, Any]:
    """How far all weights are from where they started, while they are still moved."""
    # Parameters, for the state dict lists tied weights twice.
    total = sum(
        float((parameter.detach().float() - start[name].float()).pow(2).sum())
        for name, parameter in model.named_parameters()
    )
    return {"weight_change_norm": math.sqrt(total), "modules": len(start), "matched_modules": ["all"]}
