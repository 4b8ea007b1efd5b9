"""One forward pass for a model and itself with a LoRA adapter: a trunk up to the first adapted block, then both."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from datablame.models.blocks import decoder_blocks
from datablame.models.load import twin


class _BothLinear(nn.Module):
    """A layer over both models' rows in turn, after's first; only after's get the part of peft's `lora`."""

    def __init__(self, lora: Any) -> None:
        super().__init__()
        [adapter] = lora.active_adapters
        self.base, self.scale = lora.base_layer, lora.scaling[adapter]
        self.a, self.b = lora.lora_A[adapter], lora.lora_B[adapter]

    def forward(self, inputs: Float[Tensor, "rows *tokens inputs"]) -> Float[Tensor, "rows *tokens outputs"]:
        """The base's outputs, after's moved."""
        outputs: Tensor = self.base(inputs)
        outputs[::2] += self.b(self.a(inputs[::2].to(self.a.weight.dtype))) * self.scale
        return outputs


def shared_trunk(after: Any, before: Any) -> Any | None:
    """A third tree of modules over the weights of before whose outputs are after's and before's rows in turn.

    None where after is not before plus a plain LoRA adapter in decoder blocks over shared weights.
    """
    peft = {name: m for name, m in after.named_modules() if type(m).__module__.startswith("peft.")}
    loras = [m for name, m in peft.items() if not any(name.startswith(f"{outer}.") for outer in peft)]
    if not loras or not all(map(_is_plain, loras)) or not _shares_weights(after, before):
        return None
    tree = twin(after, {id(lora): _BothLinear(lora) for lora in loras})
    blocks = decoder_blocks(tree)
    adapted = [n for n, block in enumerate(blocks) for module in block.modules() if isinstance(module, _BothLinear)]
    if len(adapted) < len(loras):
        return None
    lowest = min(adapted)
    for number, block in enumerate(blocks[lowest:], lowest):
        block.register_forward_pre_hook(_doubling(number == lowest), with_kwargs=True)
    tree.shared_trunk_of = 2
    return tree


def _doubling(trunk_ends: bool) -> Callable[..., Any]:
    """A hook that repeats what a block is given for each row; its hidden states only where the trunk ends."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        named = "hidden_states" in kwargs
        hidden = kwargs["hidden_states"] if named else args[0]
        rows = len(hidden) if trunk_ends else len(hidden) // 2
        if trunk_ends:
            hidden = hidden.repeat_interleave(2, 0)
        others = {name: _doubled(value, rows) for name, value in kwargs.items() if name != "hidden_states"}
        rest = _doubled(args if named else args[1:], rows)
        return (rest, {**others, "hidden_states": hidden}) if named else ((hidden, *rest), others)

    return hook


def _doubled(value: Any, rows: int) -> Any:
    """Tensors of so many rows with each row twice; one row serves any number."""
    if isinstance(value, tuple):
        return tuple(_doubled(part, rows) for part in value)
    if isinstance(value, Tensor) and rows > 1 and value.ndim > 1 and len(value) == rows:
        return value.repeat_interleave(2, 0)
    return value


def _is_plain(module: Any) -> bool:
    """Whether what peft put in is a single plain LoRA on a Linear layer, or on GPT-2's Conv1D."""
    if type(module).__module__ != "peft.tuners.lora.layer" or type(module).__name__ != "Linear":
        return False
    active = list(module.active_adapters)
    return (
        len(active) == 1
        and set(module.lora_A) == set(active)
        and not module.merged
        and not module.disable_adapters
        and not module.lora_variant
        and type(module.base_layer) in (nn.Linear, Conv1D)
        and not (module.training and not isinstance(module.lora_dropout[active[0]], nn.Identity))
    )


def _shares_weights(after: Any, before: Any) -> bool:
    """Whether all weights of after but its adapter's are the very tensors of before, and no more."""
    ours, theirs = (
        {name: (weight.data_ptr(), weight.shape, weight.stride()) for name, weight in model.named_parameters()}
        for model in (after, before)
    )
    adapter = (".lora_A.", ".lora_B.")
    base = {n.replace(".base_layer.", "."): w for n, w in ours.items() if not any(part in n for part in adapter)}
    return base == theirs
