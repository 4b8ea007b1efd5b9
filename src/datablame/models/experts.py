"""The experts of a mixture, which transformers 5 holds in one tensor: run product by product, so that each can be met.

A token's input goes to its k experts; a pair is a token with one of them. Every product is given the pairs in the order
of their experts. The equations are those of transformers' own `grouped_mm_experts_forward`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Routing(NamedTuple):
    """The pairs, ordered by expert and for each expert by token."""

    tokens: Int[Tensor, " pairs"]
    experts: Int[Tensor, " pairs"]

    def by_expert(self, n: int) -> list[int]:
        """How many pairs each of `n` experts has."""
        counts: list[int] = torch.bincount(self.experts, minlength=n).tolist()
        return counts


Multiply = Callable[[str, Float[Tensor, "pairs inputs"], Routing], Float[Tensor, "pairs outputs"]]
"""Gives each pair's input times its expert's matrix of the named parameter."""


def is_experts(module: Any) -> bool:
    """Whether a module holds experts as the layout says that transformers marks it with."""
    marked = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))
    return marked and all(getattr(module, name).ndim == 3 for name in parameters_of(module))


def parameters_of(module: Any) -> tuple[str, str]:
    """The names of the parameters, in the order in which they are multiplied with."""
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"


def matrices(module: Any, parameter: str) -> Float[Tensor, "experts outputs inputs"]:
    """A view of each expert's matrix as a Linear layer would have it."""
    weight: Tensor = getattr(module, parameter)
    return weight.mT if module.is_transposed else weight


def multiplied(
    module: Any, parameter: str, inputs: Float[Tensor, "pairs inputs"], routing: Routing
) -> Float[Tensor, "pairs outputs"]:
    """The plain product, bias added."""
    each = matrices(module, parameter)
    parts = zip(each, inputs.split(routing.by_expert(len(each))), strict=True)
    outputs = torch.cat([rows @ matrix.T for matrix, rows in parts])
    return outputs + getattr(module, f"{parameter}_bias")[routing.experts] if module.has_bias else outputs


def run_experts(
    module: Any,
    hidden: Float[Tensor, "tokens width"],
    index: Int[Tensor, "tokens k"],
    weights: Float[Tensor, "tokens k"],
    multiply: Multiply,
) -> Float[Tensor, "tokens width"]:
    """What the module's own forward gives, its two products made by `multiply`."""
    k = index.shape[-1]
    experts, order = index.reshape(-1).sort(stable=True)
    routing, (first, second) = Routing(order // k, experts), parameters_of(module)
    inner = multiply(first, hidden[routing.tokens], routing)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outputs = multiply(second, inner, routing)
    if getattr(module, "has_post_expert_norm", False):
        outputs = module.post_expert_norm(outputs)
    weighted = (outputs * weights.reshape(-1)[order].unsqueeze(1))[order.argsort()]
    summed: Tensor = weighted.unflatten(0, (-1, k)).sum(1)
    return summed.to(hidden.dtype)


def with_products(module: Any, multiply: Multiply) -> AbstractContextManager[None]:
    """Inside, the module's products are made by `multiply`."""
    return with_forward(module, partial(run_experts, module, multiply=multiply))


@contextmanager
def with_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Any:
    """Inside, the module runs another forward."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
