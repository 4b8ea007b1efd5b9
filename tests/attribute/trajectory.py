"""A trajectory of the tiny pair: checkpoints between, and the state of its optimiser."""

from pathlib import Path
from typing import Any

import torch
from tests.conftest import nudged, tiny_model, tiny_tokenizer

RATES = (3e-4, 1e-4)


def made_trajectory(tiny_pair_folder: Path, folder: Path) -> dict[str, Any]:
    """The models of a study: the tiny pair, two checkpoints between, the state of an AdamW as Trainer saves it."""
    before = tiny_model(seed=1)
    for number, share in enumerate((0.1, 0.2)):
        nudged(before, seed=2, share=share).save_pretrained(folder / str(number))
        tiny_tokenizer().save_pretrained(folder / str(number))
    torch.save(trained_optimizer(before).state_dict(), folder / "optimizer.pt")
    return {
        **{name: str(tiny_pair_folder / name) for name in ("before", "after")},
        "checkpoints": [{"path": str(folder / str(n)), "learning_rate": rate} for n, rate in enumerate(RATES)],
        "optimizer": str(folder / "optimizer.pt"),
    }


def trained_optimizer(model: Any, named: bool = False) -> torch.optim.AdamW:
    """After two steps on noise, its groups as Trainer makes them: matrices first, which decay, then norms."""
    parameters = list(model.named_parameters())
    groups = [[(n, p) for n, p in parameters if ("norm" in n) is norm] for norm in (False, True)]
    listed: list[Any] = [{"params": group if named else [p for _, p in group]} for group in groups]
    optimizer = torch.optim.AdamW(listed, lr=1e-9, betas=(0.9, 0.999))
    noise = torch.Generator().manual_seed(0)
    for _ in range(2):
        for number, (_, parameter) in enumerate(parameters):
            parameter.grad = 0.01 * (number + 1) * torch.randn(parameter.shape, generator=noise)
        optimizer.step()
    return optimizer
