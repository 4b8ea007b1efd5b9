"""One forward pass for a model and itself with a LoRA adapter: they part where the first adapted block begins."""

import copy
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.blocks import decoder_blocks


class _Lora(NamedTuple):
    """An adapted Linear layer and what is added to it."""

    module: nn.Module
    base: nn.Linear
    a: nn.Linear
    b: nn.Linear
    scale: float


class _BranchedLinear(nn.Module):
    """A Linear layer over both models' rows in turn, after's first; only after's get the adapter's part."""

    def __init__(self, lora: _Lora) -> None:
        super().__init__()
        self.base, self.a, self.b, self.scale = lora.base, lora.a, lora.b, lora.scale

    def forward(self, inputs: Float[Tensor, "rows *tokens inputs"]) -> Float[Tensor, "rows *tokens outputs"]:
        """The base's outputs, after's moved."""
        outputs: Tensor = self.base(inputs)
        outputs[::2] += self.b(self.a(inputs[::2].to(self.a.weight.dtype))) * self.scale
        return outputs


def forked(after: Any, before: Any) -> Any | None:
    """A third tree of modules over the weights of before whose outputs are after's and before's rows in turn.

    Below the lowest adapted block both are the same numbers and are computed once; above it one batch of both reads
    every weight once. None where after is not before plus a plain LoRA adapter in decoder blocks over shared weights.
    """
    loras = _loras(after)
    if not loras or not _shares_weights(after, before):
        return None
    shared = {id(tensor): tensor for tensor in (*after.parameters(), *after.buffers())}
    # A deep copy that keeps the tensors, as `twin` does, and has other layers where peft put its own.
    tree = copy.deepcopy(after, {**shared, **{id(lora.module): _BranchedLinear(lora) for lora in loras}})
    blocks = decoder_blocks(tree)
    adapted = [n for n, block in enumerate(blocks) for each in block.modules() if isinstance(each, _BranchedLinear)]
    if len(adapted) < len(loras):
        return None
    fork = min(adapted)
    for number, block in enumerate(blocks[fork:], fork):
        block.register_forward_pre_hook(_Doubling(number == fork), with_kwargs=True)
    tree.branches = 2
    return tree


class _Doubling:
    """Repeats what a block is given for each row; its hidden states only where the branches part."""

    def __init__(self, parting: bool) -> None:
        self._parting = parting

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        named = "hidden_states" in kwargs
        hidden, rest = (kwargs["hidden_states"], args) if named else (args[0], args[1:])
        rows = len(hidden) if self._parting else len(hidden) // 2
        if self._parting:
            hidden = hidden.repeat_interleave(2, 0)
        others = {name: _doubled(value, rows) for name, value in kwargs.items() if name != "hidden_states"}
        rest = tuple(_doubled(value, rows) for value in rest)
        return (rest, {**others, "hidden_states": hidden}) if named else ((hidden, *rest), others)


def _doubled(value: Any, rows: int) -> Any:
    """Tensors of so many rows with each row twice; one row serves any number."""
    if isinstance(value, tuple):
        return tuple(_doubled(each, rows) for each in value)
    if isinstance(value, Tensor) and rows > 1 and value.ndim > 1 and len(value) == rows:
        return value.repeat_interleave(2, 0)
    return value


def _loras(model: Any) -> list[_Lora] | None:
    """Every module that peft put in; None where one is more than a single plain LoRA on a Linear layer."""
    found = []
    peft = {name: m for name, m in model.named_modules() if type(m).__module__.startswith("peft.")}
    for name, module in peft.items():
        if any(name.startswith(f"{outer}.") for outer in peft):
            continue
        lora = _plain(module)
        if lora is None:
            return None
        found.append(lora)
    return found


def _plain(module: Any) -> _Lora | None:
    if type(module).__module__ != "peft.tuners.lora.layer" or type(module).__name__ != "Linear":
        return None
    active = list(module.active_adapters)
    plain = (
        len(active) == 1
        and set(module.lora_A) == set(active)
        and not module.merged
        and not module.disable_adapters
        and not module.lora_variant
        and type(module.base_layer) is nn.Linear
        and not (module.training and not isinstance(module.lora_dropout[active[0]], nn.Identity))
    )
    if not plain:
        return None
    adapter = active[0]
    return _Lora(module, module.base_layer, module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter])


def _shares_weights(after: Any, before: Any) -> bool:
    """Whether all weights of after but its adapter's are the very tensors of before, and no more."""
    own = {
        name.replace(".base_layer.", "."): weight
        for name, weight in after.named_parameters()
        if ".lora_A." not in name and ".lora_B." not in name
    }
    theirs = dict(before.named_parameters())
    return own.keys() == theirs.keys() and all(_same(own[name], theirs[name]) for name in own)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
