"""Models trained and given back as they were: several LoRA adapters at once on one base, or all weights.

The adapters of several arms differ in a few documents only. Trained one after another, each of them reads all of the
base's weights at every step for a handful of rows; side by side they do it together. An adapter sees its own rows only,
so that it learns what it would learn alone, up to rounding.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.blocks import Trunk
from datablame.models.chat import Encoded, Preference
from datablame.models.likelihood import preference_losses
from datablame.models.lora import SCALE, Start, adapted, adapter_norm, factors_of, save_adapter, set_factors
from datablame.models.training import DoesNotFit, Recipe, minimise, response_losses

_logger = logging.getLogger(__name__)

Factors = Mapping[str, tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]
"""A and B of every adapted module by its name."""


class Trained(NamedTuple):
    """One adapter and the losses (nats, or DPO's) of its steps."""

    factors: Factors
    losses: list[float]


class _SideBySide(nn.Module):
    """A frozen Linear with n adapters: consecutive rows, as many for each, go to adapter 0, 1 and so on.

    Gives out W x + b + scale B_i A_i x in the base's type; the factors are in a type of their own.
    """

    def __init__(self, base: nn.Module, start: tuple[Tensor, Tensor], n: int) -> None:
        super().__init__()
        self.base, (down, up) = base, start
        self.down = nn.Parameter(down.expand(n, -1, -1).clone())
        self.up = nn.Parameter(up.expand(n, -1, -1).clone())

    def forward(self, inputs: Float[Tensor, "rows tokens inputs"]) -> Float[Tensor, "rows tokens outputs"]:
        plain = self.base(inputs)
        own = inputs.to(self.down.dtype).reshape(len(self.down), -1, inputs.shape[-1])
        change = own @ self.down.mT @ self.up.mT * SCALE
        changed: Tensor = plain + change.view_as(plain)
        return changed.to(plain.dtype)


def train_adapters(
    model: Any,
    examples: Sequence[Sequence[Encoded | Preference]],
    order: Sequence[Sequence[int]],
    recipe: Recipe,
    start: Start,
    beta: float,
    trunk: Trunk | None = None,
) -> list[Trained]:
    """One adapter for each list of examples, all from one start and in one order; the model is as it was afterwards.

    Examples stand position by position, as answers or as preference pairs with their `reference` (`beta` is that of
    length-normalised DPO); `order` has the positions of each step. The recipe's micro-batch counts the documents of all
    adapters; where not even one position of all fits in memory, they are trained one after another.

    Raises:
        PhaseError: a single document does not fit in memory.
        RequestError: a chosen block doesn't exist.
    """
    n = len(examples)
    if recipe.micro_batch is not None:
        recipe = recipe._replace(micro_batch=max(1, recipe.micro_batch // n))
    sides = list(zip(*examples, strict=True))
    pairs = isinstance(sides[0][0], Preference)

    def losses_of(part: Sequence[Any]) -> Float[Tensor, " adapters"]:
        every = [side[adapter] for adapter in range(n) for side in part]
        if pairs:
            return preference_losses(model, every, beta, n).view(n, -1).mean(1)
        return response_losses(model, every, n, trunk)

    try:
        with _stacked(model, start, n) as stacks:
            losses = minimise(model, losses_of, sides, order, recipe, n)
            factors = [
                {name: (stack.down[i].detach().clone(), stack.up[i].detach().clone()) for name, stack in stacks.items()}
                for i in range(n)
            ]
    except DoesNotFit:
        if n == 1:
            raise
        _logger.warning("memory does not hold %d adapters at once; they are trained one after another", n)
        alone = (train_adapters(model, [own], order, recipe, start, beta, trunk) for own in examples)
        return [trained for (trained,) in alone]
    return [Trained(own, [step[i] for step in losses]) for i, own in enumerate(factors)]


@contextlib.contextmanager
def _stacked(model: nn.Module, start: Start, n: int) -> Iterator[dict[str, _SideBySide]]:
    """The model with n equal adapters, alone trainable, on every Linear of the blocks; off again afterwards."""
    with adapted(model, *start) as adapter:
        begun = factors_of(adapter)
    stacks = {}
    try:
        for name, factors in begun.items():
            stacks[name] = _SideBySide(model.get_submodule(name), factors, n)
            model.set_submodule(name, stacks[name])
        yield stacks
    finally:
        for name, stack in stacks.items():
            model.set_submodule(name, stack.base)


@contextlib.contextmanager
def full_finetune(model: nn.Module) -> Iterator[Callable[[], dict[str, Any]]]:
    """The model with all weights trainable; afterwards they are what they were. What it gives tells how far they moved.

    As `with_adapter`: `weight_change_norm`, `modules`, `matched_modules`.
    """
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.requires_grad_(True)

    def moved() -> dict[str, Any]:
        # Parameters, for the state dict lists tied weights twice.
        squares = ((w.detach().float() - start[name].float()).pow(2).sum() for name, w in model.named_parameters())
        norm = math.sqrt(sum(map(float, squares)))
        return {"weight_change_norm": norm, "modules": len(start), "matched_modules": ["all"]}

    try:
        yield moved
    finally:
        model.load_state_dict(start)
        model.requires_grad_(False)


@contextlib.contextmanager
def with_adapter(model: nn.Module, start: Start, factors: Factors, file: Path) -> Iterator[dict[str, Any]]:
    """The model with a trained adapter, which is written to a file, and how far it moves the weights.

    Afterwards the model is as it was.
    """
    with adapted(model, *start) as adapter:
        set_factors(adapter, factors)
        save_adapter(adapter, file)
        matched = sorted({name.rpartition(".")[2] for name in adapter.modules})
        norm = adapter_norm(adapter)
        _logger.info("%s: LoRA on %d modules (%s), norm %.3g", file.stem, len(factors), ", ".join(matched), norm)
        yield {"weight_change_norm": norm, "modules": len(factors), "matched_modules": matched}
