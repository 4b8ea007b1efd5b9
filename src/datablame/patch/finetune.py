"""Models trained and given back as they were: several LoRA adapters at once on one base, or all weights.

The adapters of several arms differ in a few documents only. Side by side they read the base's weights once a step, not
once each; an adapter sees its own rows only, so that it learns what it would learn alone, up to rounding.
"""

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.blocks import Trunk
from datablame.models.chat import Encoded, Preference
from datablame.models.experts import Routing, multiplied, run_experts
from datablame.models.likelihood import preference_losses
from datablame.models.lora import SCALE, Start, adapted, adapter_norm, factors_of, save_adapter, set_factors
from datablame.models.training import DoesNotFit, Recipe, minimise, response_losses

_logger = logging.getLogger(__name__)

Factors = Mapping[str, tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]
"""A and B of everything adapted by its name, as peft has them."""
Order = Sequence[Sequence[int]]
"""The positions of each step."""
Fit = tuple[list[float], dict[str, Any]]
"""The losses of a model's steps; how far its weights moved, by the columns of the table of trainings."""


class Trained(NamedTuple):
    """One adapter and the losses (nats, or DPO's) of its steps."""

    factors: Factors
    losses: list[float]


class _LowRank(torch.autograd.Function):
    """base + scale x A^T B^T for n adapters; what has the few rows of a rank stands on its side in every product.

    A product whose result has 8 columns takes a BLAS on a CPU up to four times as long as one with 8 rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Float[Tensor, "n tokens inputs"],
        base: Float[Tensor, "n tokens outputs"],
        down: Float[Tensor, "n rank inputs"],
        up: Float[Tensor, "n outputs rank"],
    ) -> Float[Tensor, "n tokens outputs"]:
        inner = down @ inputs.mT
        ctx.save_for_backward(inputs, down, up, inner)
        return torch.baddbmm(base, inner.mT, up.mT, alpha=SCALE)

    @staticmethod
    def backward(ctx: Any, upstream: Float[Tensor, "n tokens outputs"]) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        inputs, down, up, inner = ctx.saved_tensors
        of_inner = (up.mT @ upstream.mT).mul_(SCALE)
        of_inputs = of_inner.mT @ down if ctx.needs_input_grad[0] else None
        return of_inputs, upstream, of_inner @ inputs, (inner @ upstream).mul_(SCALE).mT


class _SideBySide(nn.Module):
    """A frozen layer with n adapters: consecutive rows, as many for each, go to adapter 0, 1 and so on.

    Gives out W x + b + scale B_i A_i x in the base's type; the factors are in a type of their own.
    """

    def __init__(self, base: nn.Module, starts: Factors, n: int) -> None:
        super().__init__()
        [(self.name, (down, up))] = starts.items()
        self.base = base
        self.down = nn.Parameter(down.expand(n, -1, -1).clone())
        self.up = nn.Parameter(up.expand(n, -1, -1).clone())

    def forward(self, inputs: Float[Tensor, "rows *tokens inputs"]) -> Float[Tensor, "rows *tokens outputs"]:
        plain = self.base(inputs)
        n, kind = len(self.down), self.down.dtype
        by_adapter, base = (each.to(kind).reshape(n, -1, each.shape[-1]) for each in (inputs, plain))
        changed: Tensor = _LowRank.apply(by_adapter, base, self.down, self.up)  # type: ignore[no-untyped-call]
        return changed.view(plain.shape).to(plain.dtype)

    def factors(self, i: int) -> Factors:
        """Those of one adapter."""
        return {self.name: (self.down[i].detach().clone(), self.up[i].detach().clone())}


class _ExpertsSideBySide(nn.Module):
    """Frozen experts with n adapters on each: consecutive tokens, as many for each, go to adapter 0, 1 and so on."""

    def __init__(self, base: nn.Module, starts: Factors, n: int) -> None:
        super().__init__()
        self.base, self.names, downs, ups = base, [*starts], nn.ParameterDict(), nn.ParameterDict()
        for name, (down, up) in starts.items():
            experts, parameter = len(getattr(base, name.rpartition(".")[2])), name.rpartition(".")[2]
            downs[parameter] = down.unflatten(0, (experts, -1)).expand(n, -1, -1, -1).clone()
            ups[parameter] = up.unflatten(1, (-1, experts)).permute(2, 0, 1).expand(n, -1, -1, -1).clone()
        self.downs, self.ups, self.n = downs, ups, n

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        tokens_each = len(hidden) // self.n

        def multiply(parameter: str, inputs: Tensor, routing: Routing) -> Tensor:
            plain = multiplied(self.base, parameter, inputs, routing)
            down, up = self.downs[parameter].flatten(0, 1), self.ups[parameter].flatten(0, 1)
            adapters, order = (routing.tokens // tokens_each * (len(down) // self.n) + routing.experts).sort(
                stable=True
            )
            parts = inputs[order].to(down.dtype).split(torch.bincount(adapters, minlength=len(down)).tolist())
            changes = torch.cat([rows @ a.T @ b.T for rows, a, b in zip(parts, down, up, strict=True)])
            return (plain + changes[order.argsort()] * SCALE).to(plain.dtype)

        return run_experts(self.base, hidden, index, weights, multiply)

    def factors(self, i: int) -> Factors:
        """Those of one adapter, side by side as peft has them."""
        parts = {name: (self.downs[p][i], self.ups[p][i]) for name in self.names for p in [name.rpartition(".")[2]]}
        return {
            name: (down.detach().flatten(0, 1).clone(), up.detach().permute(1, 2, 0).flatten(1).clone())
            for name, (down, up) in parts.items()
        }


def train_adapters(
    model: Any,
    examples: Sequence[Sequence[Encoded | Preference]],
    order: Order,
    recipe: Recipe,
    start: Start,
    beta: float,
    trunk: Trunk | None = None,
) -> list[Trained]:
    """One adapter for each list of examples, all from one start and in one order; the model is as it was afterwards.

    Examples stand position by position, as answers or as preference pairs with their `reference` (`beta` is that of
    length-normalised DPO). The recipe's micro-batch counts the documents of all adapters; where not even one position
    of all fits in memory, they are trained one after another.

    Raises:
        PhaseError: a single document does not fit in memory.
        RequestError: a chosen block doesn't exist.
    """
    n = len(examples)
    if recipe.micro_batch is not None:
        recipe = recipe._replace(micro_batch=max(1, recipe.micro_batch // n))
    sides = list(zip(*examples, strict=True))

    def losses_of(part: Sequence[Any]) -> Float[Tensor, " adapters"]:
        return _losses(model, beta, [side[adapter] for adapter in range(n) for side in part], n, trunk)

    try:
        with _stacked(model, start, n) as stacks:
            losses = minimise(model, losses_of, sides, order, recipe, n)
            factors = [{name: each for stack in stacks for name, each in stack.factors(i).items()} for i in range(n)]
    except DoesNotFit:
        if n == 1:
            raise
        _logger.warning("memory does not hold %d adapters at once; they are trained one after another", n)
        return [one for own in examples for one in train_adapters(model, [own], order, recipe, start, beta, trunk)]
    return [Trained(adapter, [step[i] for step in losses]) for i, adapter in enumerate(factors)]


def _losses(
    model: Any, beta: float, examples: Sequence[Any], n: int = 1, trunk: Trunk | None = None
) -> Float[Tensor, " runs"]:
    """The mean loss of each of `n` consecutive runs of documents, or of preference pairs."""
    if isinstance(examples[0], Preference):
        return preference_losses(model, examples, beta, n).view(n, -1).mean(1)
    return response_losses(model, examples, n, trunk)


@contextlib.contextmanager
def _stacked(model: nn.Module, start: Start, n: int) -> Iterator[list[_SideBySide | _ExpertsSideBySide]]:
    """The model with n equal adapters, alone trainable, on every product of the blocks; off again afterwards."""
    with adapted(model, *start) as adapter:
        begun = factors_of(adapter)
    stacks, experts = dict[str, _SideBySide | _ExpertsSideBySide](), defaultdict[str, dict[str, Any]](dict)
    for name in adapter.targets.parameters:
        experts[name.rpartition(".")[0]][name] = begun[name]
    try:
        for name in adapter.targets.modules:
            stacks[name] = _SideBySide(model.get_submodule(name), {name: begun[name]}, n)
            model.set_submodule(name, stacks[name])
        for name, factors in experts.items():
            stacks[name] = _ExpertsSideBySide(model.get_submodule(name), factors, n)
            model.set_submodule(name, stacks[name])
        yield list(stacks.values())
    finally:
        for name, stack in stacks.items():
            model.set_submodule(name, stack.base)


@contextlib.contextmanager
def full_finetune(
    model: nn.Module, examples: Sequence[Encoded | Preference], order: Order, recipe: Recipe, beta: float
) -> Iterator[Fit]:
    """The model with all its weights trained on the examples; afterwards they are what they were."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.requires_grad_(True)
    try:
        losses = [loss for (loss,) in minimise(model, partial(_losses, model, beta), examples, order, recipe)]
        # Parameters, for the state dict lists tied weights twice.
        squares = ((w.detach().float() - start[name].float()).pow(2).sum() for name, w in model.named_parameters())
        norm = math.sqrt(sum(map(float, squares)))
        yield losses, {"weight_change_norm": norm, "modules": len(start), "matched_modules": ["all"]}
    finally:
        model.load_state_dict(start)
        model.requires_grad_(False)


@contextlib.contextmanager
def with_adapter(model: nn.Module, start: Start, trained: Trained, folders: Sequence[Path]) -> Iterator[Fit]:
    """The model with a trained adapter, which is written to each of the folders; afterwards it is as it was."""
    with adapted(model, *start) as adapter:
        set_factors(adapter, trained.factors)
        matched = sorted({name.rpartition(".")[2] for name in trained.factors})
        norm, modules = adapter_norm(adapter), len(trained.factors)
        _logger.info("%s: LoRA on %d modules (%s), norm %.3g", folders[0].name, modules, ", ".join(matched), norm)
        for folder in folders:
            save_adapter(adapter, folder)
        yield trained.losses, {"weight_change_norm": norm, "modules": modules, "matched_modules": matched}
