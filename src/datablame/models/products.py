"""The matrix products inside decoder blocks: Linear layers, GPT-2's Conv1D, and each expert of a mixture.

They are what gradients are compared over and what LoRA adapts. What a pass does not call is none: some architectures
read a layer's weight themselves, so that no hook hears of it. `coverage` says how much of the blocks they make up.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from datablame.models.blocks import decoder_blocks
from datablame.models.experts import is_experts, matrices, parameters_of, with_forward, with_products
from datablame.models.source import refusal

_PROBE_TOKENS = 4
_called: "weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[nn.Module]]" = weakref.WeakKeyDictionary()


class Product(NamedTuple):
    """A matrix that inputs are multiplied with: a layer's, or one expert's of a parameter."""

    modules: tuple[nn.Module, ...]
    """Those that hold it: several where layers are tied."""
    parameter: str
    expert: int | None
    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        """Weights."""
        return self.outputs * self.inputs

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = getattr(self.modules[0], self.parameter).device
        return device


def products(model: Any, blocks: Sequence[int]) -> dict[str, Product]:
    """The products of the chosen decoder blocks by BLOCK.NAME, for experts BLOCK.NAME.PARAMETER.EXPERT.

    What several blocks or layers share is there once. RequestError where a block has none.
    """
    found, of_weight, stack = dict[str, Product](), dict[tuple[int, int | None], str](), decoder_blocks(model)
    called = _called_in_a_pass(model)
    for block in sorted(set(blocks)):
        inside = [(name, module) for name, module in stack[block].named_modules() if module in called]
        if not inside:
            raise refusal("no_products", block=block, what=type(model).__name__)
        for name, product in chain.from_iterable(starmap(_products_of, ((f"{block}.{n}", m) for n, m in inside))):
            [module] = product.modules
            first = of_weight.setdefault((id(getattr(module, product.parameter)), product.expert), name)
            known = found.get(first, product).modules
            found[first] = product._replace(modules=known if module in known else (*known, module))
    return found


def matrix_of(product: Product, values: Tensor) -> Tensor:
    """Of a tensor shaped as the parameter that holds the product, a view of the product's part, (outputs, inputs)."""
    module: Any = product.modules[0]
    own = values if product.expert is None else values[product.expert]
    transposed = isinstance(module, Conv1D) or (product.expert is not None and module.is_transposed)
    return own.mT if transposed else own


@contextlib.contextmanager
def listening(
    model: Any, blocks: Sequence[int], layer: Callable[..., Tensor], experts: Callable[..., Tensor]
) -> Iterator[None]:
    """Inside, what a pass makes of the products goes through two functions, which may change it.

    `layer` is a forward hook after the product's name; `experts` makes a mixture's products after the mixture's name
    and module, as `Multiply` does.
    """
    with contextlib.ExitStack() as undone:
        mixtures = dict[nn.Module, str]()
        for name, product in products(model, blocks).items():
            for module in product.modules:
                if product.expert is None:
                    undone.callback(module.register_forward_hook(partial(layer, name)).remove)
                else:
                    mixtures[module] = name.removesuffix(f".{product.parameter}.{product.expert}")
        for module, name in mixtures.items():
            undone.enter_context(with_products(module, partial(experts, name, module)))
        yield


def coverage(model: Any, blocks: Sequence[int]) -> float:
    """The share of the chosen blocks' weights that are in products; the model may be on the meta device."""
    stack = decoder_blocks(model)
    weights = {weight: weight.numel() for block in set(blocks) for weight in stack[block].parameters()}
    return sum(product.size for product in products(model, blocks).values()) / sum(weights.values())


def _products_of(name: str, module: nn.Module) -> Iterator[tuple[str, Product]]:
    if isinstance(module, nn.Linear):
        yield name, Product((module,), "weight", None, module.out_features, module.in_features)
    elif isinstance(module, Conv1D):
        yield name, Product((module,), "weight", None, module.nf, module.nx)
    elif is_experts(module):
        for parameter in parameters_of(module):
            n, outputs, inputs = matrices(module, parameter).shape
            for expert in range(n):
                yield f"{name}.{parameter}.{expert}", Product((module,), parameter, expert, outputs, inputs)


def _called_in_a_pass(model: Any) -> "weakref.WeakSet[nn.Module]":
    """Modules of products that a pass over a few tokens calls; where it fails, on the meta device, all."""
    if model in _called:
        return _called[model]
    kinds = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) or is_experts(module)]
    called: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def hear(module: nn.Module, _: Any, output: Any) -> None:
        # Some routers are a Linear layer that gives out several things.
        if isinstance(output, Tensor):
            called.add(module)

    def unrouted(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden

    with contextlib.ExitStack() as undone, torch.no_grad():
        for module in kinds:
            undone.callback(module.register_forward_hook(hear).remove)
            if is_experts(module):
                # Which expert a token goes to has no meaning on the meta device.
                undone.enter_context(with_forward(module, unrouted))
        ids = torch.zeros(1, _PROBE_TOKENS, dtype=torch.long, device=model.get_input_embeddings().weight.device)
        try:
            model(input_ids=ids, use_cache=False)
        except (NotImplementedError, RuntimeError):
            if ids.device.type != "meta":
                raise
            called.update(kinds)
    _called[model] = called
    return called
