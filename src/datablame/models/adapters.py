"""LoRA adapters that others trained, put on as peft does: the base keeps every byte, a merge every logit.

peft's layers come and go by module; a merged layer is a copy, so that no tied or shared weight changes with it.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datablame.engine.files import json_object
from datablame.errors import RequestError
from datablame.models.source import ADAPTER_CONFIG, Checkpoint, first_line, refusal
from datablame.models.weight_files import header

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_REWRITING = ("pissa", "olora")
"""Initialisations that take what the adapter starts with out of the base; peft does so again when it loads one."""
_UNREPEATABLE = ("corda", "lora_ga", "pissa_niter", "loftq")
"""Initialisations that do so by what the adapter does not bring (data, random numbers, a quantiser of one machine), so
that its base is gone."""
_AS_PLAIN = "as a plain LoRA (path_initial_model_for_weight_conversion) or "
_NAME = re.compile(r"\.default(?=\.|$)")
"""What peft calls an adapter, in the names of its tensors while it is on."""
_TWICE = re.compile(r"\.(modules_to_save|original_module)\.weight$")
_PROBED_TOKENS = 48
TOLERANCES = {torch.float32: 1e-3}
TOLERANCE_16_BIT = 0.1
"""Of the norm of the logits: a merged weight of 16 bits is rounded once more."""


def with_adapter(model: Any, adapter: Checkpoint) -> Any:
    """The model with the adapter's layers in its tree, active, without gradients; its own weights are those it had.

    Weights that the adapter brings whole, or takes from the base when it is put on, become the tree's own.
    RequestError where it is no LoRA, is pickled, its tensors are not what the model needs, it needs more than its
    layers to speak, or putting it on changes weights that others share.
    """
    config, file = adapter.file(ADAPTER_CONFIG), adapter.file(WEIGHTS)
    kind = json_object(config).get("peft_type") if config is not None else None
    if kind != "LORA":
        raise adapter.refused("no_lora", kind=kind)
    if file is None:
        pickled = adapter.file("adapter_model.bin") is not None
        contents = "adapter_model.bin, which is pickled and not opened" if pickled else f"no {WEIGHTS}"
        raise adapter.refused("no_adapter_weights", contents=contents)
    try:
        header(file)
    except ValueError as error:
        raise adapter.refused("broken_weights", error=error) from error
    held = [*model.parameters(), *model.buffers()]
    sums = [_checksum(tensor) for tensor in held]
    # Where the file brings weights of the base, or the base is rewritten, other tensors take their place in the tree.
    with warnings.catch_warnings():
        # What peft warns of is checked here, and refused where it matters.
        warnings.simplefilter("ignore")
        try:
            owner = _put_on(model, adapter, file)
            probe = _probe(owner)
            alike = torch.equal(_logits(owner, probe), _logits(owner.get_base_model(), probe))
        except RequestError:
            raise
        except Exception as error:
            # peft, safetensors and torch raise errors of many kinds for modules that are missing and wrong shapes.
            reason = ([type(error).__name__] + [line for line in map(str.strip, str(error).splitlines()) if line])[-1]
            raise adapter.refused("adapter_misfit", reason=reason[:200]) from error
    if not alike:
        raise adapter.refused("adapter_needs_more")
    if sums != [_checksum(tensor) for tensor in held]:
        raise adapter.refused("rewritten_base")
    return owner.get_base_model().eval().requires_grad_(False)


def continues(adapter: Checkpoint, earlier: Checkpoint) -> bool:
    """Whether one adapter was trained on from another one: its A, which begins at random, is nearer to that than to 0.

    True of two adapters as well that began with one seed and whose A moved little; False where one of them has no
    safetensors.
    """
    from safetensors.torch import load_file

    files = [each.file(WEIGHTS) for each in (earlier, adapter)]
    one, other = ({} if file is None else load_file(file) for file in files)
    shared = [name for name in one if "lora_A" in name and name in other and one[name].shape == other[name].shape]
    moved = sum(float((one[name].float() - other[name].float()).square().sum()) for name in shared)
    return bool(shared) and moved < sum(float(one[name].float().square().sum()) for name in shared)


def rewrites_base(adapter: Checkpoint) -> bool:
    """Whether putting the adapter on takes a part out of the weights that it is put on (PiSSA, OLoRA, KaSA)."""
    config = adapter.file(ADAPTER_CONFIG)
    settings = json_object(config) if config is not None else {}
    return _initialisation(settings) in _REWRITING or bool(settings.get("kasa_config"))


def merged(model: Any, adapter: Checkpoint) -> Any:
    """A model with an adapter in its tree as a plain one; RequestError where its logits are not the same."""
    probe = _probe(model)
    expected = _logits(model, probe)
    for name, layer in merged_layers(model):
        model.set_submodule(name, layer)
    # By this, peft knows a model that has adapters.
    vars(model).pop("peft_config", None)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and getattr(head, "weight", None) is not embedding.weight:
        model.config.tie_word_embeddings = False
    difference = (_logits(model, probe) - expected).norm() / expected.norm()
    if not difference <= TOLERANCES.get(model.dtype, TOLERANCE_16_BIT):
        raise adapter.refused("wrong_merge", difference=float(difference))
    return model.eval().requires_grad_(False)


def merged_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What each outermost layer of peft amounts to, by its name, as a plain layer of its own; the model stays.

    RequestError of one that cannot be merged.
    """
    last = "\n"
    for name, module in list(model.named_modules()):
        if type(module).__module__.startswith("peft.") and not name.startswith(f"{last}."):
            last = name
            try:
                layer = _merged(module)
            except (NotImplementedError, ValueError, RuntimeError, AttributeError) as error:
                raise refusal("unmergeable", layer=name, reason=first_line(error)[:200]) from error
            yield name, layer


@torch.no_grad()
def _merged(module: nn.Module) -> nn.Module:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layer: Any = copy.deepcopy(module)
    if isinstance(layer, AuxiliaryTrainingWrapper):
        whole: nn.Module = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        return whole
    # An expert's LoRA wraps another one.
    while isinstance(layer, BaseTunerLayer):
        base: Any = layer.get_base_layer()
        if any(getattr(layer, "lora_bias", {}).values()) and base.bias is None:
            base.bias = nn.Parameter(base.weight.new_zeros(layer.out_features))
        layer.merge()
        layer = layer.base_layer
    plain: nn.Module = layer
    return plain


def _put_on(model: Any, adapter: Checkpoint, file: Path) -> Any:
    """The model of peft around the adapted one; RequestError where a tensor is missing or has no place."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    if (written := _initialisation(raw := json_object(file.parent / ADAPTER_CONFIG))) in _UNREPEATABLE:
        scaled_by_layer = raw.get("use_rslora") and (raw.get("rank_pattern") or raw.get("alpha_pattern"))
        # peft turns these alone into a plain LoRA.
        plain = "" if written == "loftq" or scaled_by_layer else _AS_PLAIN
        raise adapter.refused("unrepeatable", init=written, plain=plain)
    tensors, settings = load_file(file), PeftConfig.from_pretrained(str(file.parent))
    if broken := [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]:
        raise adapter.refused("not_finite", first=min(broken))
    settings.inference_mode = True
    # peft warns of a base that has moved; `goes_on` has seen that its weights are the same.
    settings.base_model_name_or_path = model.name_or_path
    if settings.alora_invocation_tokens or settings.layer_replication:
        raise adapter.refused("adapter_needs_more")
    # Where embeddings were resized, the file has what is trained in them a second time.
    tensors = {name: tensor for name, tensor in tensors.items() if not _TWICE.search(name)}
    _resize(model, tensors)
    if rewrites_base(adapter):
        init, settings.init_lora_weights, kasa = settings.init_lora_weights, True, settings.kasa_config
        settings.kasa_config = None
        owner = get_peft_model(model, settings)
        adapted = [name for name, m in owner.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)]
        model = owner.unload()
        for name in adapted:
            _own(model, model.get_submodule(name))
        settings.init_lora_weights, settings.kasa_config = init, kasa
    owner = get_peft_model(model, settings)
    for name in tensors.keys() & dict(owner.named_parameters(remove_duplicate=False)).keys():
        _own(owner, owner.get_submodule(name.rpartition(".")[0]))
    weights, loaded = dict(owner.named_parameters(remove_duplicate=False)), set_peft_model_state_dict(owner, tensors)
    # A tied weight has two names and stands in the file under one.
    filled = {id(weight) for name, weight in weights.items() if name not in loaded.missing_keys}
    missing = {name for name in loaded.missing_keys if _NAME.search(name) and id(weights.get(name)) not in filled}
    for what, names in (("lacks", missing), ("holds unknown", set(loaded.unexpected_keys))):
        if names:
            raise adapter.refused("adapter_tensors", what=what, n=len(names), first=_NAME.sub("", min(names)))
    return owner.eval()


def _initialisation(settings: Mapping[str, Any]) -> str:
    """The name of what an adapter's weights began with, without its numbers; empty for the usual zeros in B."""
    init = settings.get("init_lora_weights")
    return re.sub(r"_\d+$", "", init.lower()) if isinstance(init, str) else ""


def _own(tree: nn.Module, module: nn.Module) -> None:
    """Copies take the place of the weights of a module, wherever the tree has them."""
    copies = {id(weight): nn.Parameter(weight.detach().clone(), weight.requires_grad) for weight in module.parameters()}
    for each in tree.modules():
        for name, weight in each._parameters.items():
            if id(weight) in copies:
                each._parameters[name] = copies[id(weight)]


def _resize(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """As many rows in the embeddings as those that the file brings: tokens were added before the adapter was."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    end = next(name for name, module in model.named_modules() if module is embedding)
    brought = (tensors.get(f"{_PREFIX}{end}{part}.weight") for part in ("", ".base_layer"))
    rows = next((len(tensor) for tensor in brought if tensor is not None), embedding.num_embeddings)
    if rows != embedding.num_embeddings:
        # transformers resizes in place.
        for module in filter(None, (embedding, head)):
            _own(model, module)
        model.resize_token_embeddings(rows, mean_resizing=False)


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes as whole numbers of its width."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    return int(tensor.detach().view(whole).sum()) if whole is not None else 0


def _probe(model: Any) -> Tensor:
    """Tokens from all over the embedding."""
    rows = model.get_input_embeddings().weight.shape[0] if hasattr(model.get_input_embeddings(), "weight") else 256
    return torch.linspace(0, rows - 1, _PROBED_TOKENS).long().unsqueeze(0).to(model.device)


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Float[Tensor, "1 tokens vocabulary"]:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return logits
