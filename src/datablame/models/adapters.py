"""LoRA adapters as checkpoints: put on a model that shares its base's weights, or merged into a copy of its own."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

from datablame.config.schema import ModelRef
from datablame.errors import RequestError
from datablame.models.source import ADAPTER_CONFIG, file_of, known_commit, located, shown, weights_hash

_WEIGHTS = "adapter_model.safetensors"


def is_adapter(reference: ModelRef, field: str) -> bool:
    """Whether the checkpoint is a PEFT adapter and not a whole model."""
    return file_of(reference, ADAPTER_CONFIG, field) is not None


def base_of(reference: ModelRef, field: str) -> ModelRef:
    """The base that the adapter's own config names, in the adapter's type of weights.

    Raises:
        RequestError: it names none.
    """
    settings = _settings(reference, field)
    base = settings.get("base_model_name_or_path")
    if not base:
        raise RequestError(
            f"{field} = {shown(reference)} is an adapter that names no base; write base_model_name_or_path into its "
            f"{ADAPTER_CONFIG}"
        )
    whole = {"path": str(base), "revision": settings.get("revision"), "subfolder": None, "gguf_file": None}
    return reference.model_copy(update=whole)


def check_base(before: ModelRef, after: ModelRef) -> None:
    """Raises RequestError unless the adapter `after` was trained on `before`: the same place or the same weights."""
    field = "models.after"
    base = base_of(after, field)
    if base.path == before.path and base.revision in (None, before.revision, known_commit(before)):
        return
    folder = _folder(before, "models.before")
    try:
        base_folder = _folder(base, field)
    except RequestError:
        base_folder = None
    if folder is not None and base_folder is not None:
        if folder.resolve() == base_folder.resolve():
            return
        weights = weights_hash(folder)
        if weights is not None and weights == weights_hash(base_folder):
            return
    raise RequestError(
        f"models.after = {shown(after)} is an adapter whose base differs: it was trained on {shown(base)}, and "
        f"models.before is {shown(before)}; set models.before to its base, or correct base_model_name_or_path in its "
        f"{ADAPTER_CONFIG} where that has moved"
    )


def twin(model: Any) -> Any:
    """A second tree of modules over the very same weights: adapters put on one are not in the other.

    It costs the memory of the Python objects. What changes weights in place changes both.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def with_adapter(model: Any, reference: ModelRef, field: str) -> Any:
    """The model with the adapter's layers in its tree, active, without gradients; its own weights are not changed.

    Raises:
        RequestError: the adapter is no LoRA, is pickled, or its tensors are not those that the model needs.
    """
    return _loaded(model, reference, field).get_base_model().eval().requires_grad_(False)


def merged(model: Any, reference: ModelRef, field: str) -> Any:
    """The model with the adapter added into its weights, which are changed."""
    return _loaded(model, reference, field).merge_and_unload().eval().requires_grad_(False)


def _loaded(model: Any, reference: ModelRef, field: str) -> Any:
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    kind = _settings(reference, field).get("peft_type")
    if kind != "LORA":
        raise RequestError(f"{field} = {shown(reference)} is an adapter of the kind {kind}; only LoRA can be loaded")
    file = file_of(reference, _WEIGHTS, field)
    if file is None:
        pickled = file_of(reference, "adapter_model.bin", field) is not None
        contents = "adapter_model.bin, which is pickled and not opened" if pickled else f"no {_WEIGHTS}"
        raise RequestError(f"{field} = {shown(reference)} has {contents}; save the adapter again as safetensors")
    with warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            tensors = load_file(file)
            settings = PeftConfig.from_pretrained(str(file.parent))
            settings.inference_mode = True
            # peft warns of a base that has moved; `check_base` has seen that its weights are the same.
            settings.base_model_name_or_path = model.name_or_path
            owner = get_peft_model(model, settings)
            _check_names(set(get_peft_model_state_dict(owner)), set(tensors), reference, field)
            set_peft_model_state_dict(owner, tensors)
        except RequestError:
            raise
        except Exception as error:
            # peft, safetensors and torch raise errors of many kinds for modules that are missing and wrong shapes.
            reason = ([type(error).__name__] + [line for line in map(str.strip, str(error).splitlines()) if line])[-1]
            raise RequestError(
                f"{field} = {shown(reference)} does not fit its base ({reason[:200]}); give the base it was trained on"
            ) from error
    return owner


def _check_names(required: set[str], stored: set[str], reference: ModelRef, field: str) -> None:
    """Raises RequestError where the adapter's file lacks a tensor or holds one that has no place."""
    for kind, names in (("lacks", required - stored), ("holds unknown", stored - required)):
        if names:
            raise RequestError(
                f"{field} = {shown(reference)} {kind} {len(names)} tensors, the first is {min(names)}; give the base "
                "it was trained on, or save the adapter again"
            )


def _settings(reference: ModelRef, field: str) -> dict[str, Any]:
    file = file_of(reference, ADAPTER_CONFIG, field)
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file is not None else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise RequestError(
            f"{field} = {shown(reference)}: its {ADAPTER_CONFIG} is not valid JSON; save the adapter again"
        )
    return settings


def _folder(reference: ModelRef, field: str) -> Path | None:
    """Where the whole checkpoint lies on this machine: its folder, or the snapshot in the hub's cache."""
    file = file_of(located(reference, field), "config.json", field)
    return file.parent if file is not None else None
