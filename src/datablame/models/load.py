"""One checkpoint loaded: safetensors only, no code of strangers, refused in one line that says what to change.

LoRA adapters are checkpoints too: put on a model that shares its base's weights, or merged into a copy of its own.
"""

import copy
import logging
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from datablame.config.schema import ModelRef
from datablame.engine.files import json_object
from datablame.errors import RequestError
from datablame.models.device import chosen_device, ran_out_of_memory, weights_dtype
from datablame.models.source import (
    ADAPTER_CONFIG,
    check_weights,
    file_of,
    first_line,
    known_commit,
    located,
    offline,
    refused,
    shown,
    unloadable,
    weights_hash,
)

_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_tokenizer(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The checkpoint's own tokenizer; an adapter that was saved without one has its base's."""
    from transformers import AutoTokenizer

    _quiet()
    checkpoint = located(reference, field)
    try:
        return AutoTokenizer.from_pretrained(checkpoint.path, **_source(checkpoint))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (base := base_of(checkpoint, field)) is not None:
            return load_tokenizer(base, field=field)
        raise unloadable(reference, field, "a tokenizer", error) from error


def load_config(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The architecture's settings, an adapter's base's; RequestError unless transformers knows it as a causal LM."""
    from transformers import AutoConfig, AutoModelForCausalLM

    _quiet()
    checkpoint = located(reference, field)
    if (base := base_of(checkpoint, field)) is not None:
        return load_config(base, field=field)
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, **_source(checkpoint))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unknown(reference, field, error) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        kind = f"is of the type {config.model_type}, which is no causal language model of this release of transformers"
        raise refused(reference, field, f"{kind}; give another checkpoint")
    return config


def load_model(
    reference: ModelRef, *, device: str = "cpu", dtype: torch.dtype | None = None, field: str = "models.after"
) -> Any:
    """The checkpoint in evaluation mode without gradients; a LoRA adapter is merged into its base.

    Raises RequestError where there is no such checkpoint, it holds no safetensors, memory is too small for its weights,
    or it lacks weights, which transformers would initialise at random.
    """
    from transformers import AutoModelForCausalLM

    checkpoint, device = located(reference, field), chosen_device(device)
    if (base := base_of(checkpoint, field)) is not None:
        owner = _with_peft(load_model(base, device=device, dtype=dtype, field=field), checkpoint, field)
        return owner.merge_and_unload().eval().requires_grad_(False)
    config = load_config(checkpoint, field=field)
    check_weights(checkpoint, field)
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            **_source(checkpoint),
            **checkpoint.model_dump(include={"device_map", "attn_implementation"}, exclude_none=True),
            config=config,
            dtype=dtype or weights_dtype(checkpoint.dtype, getattr(config, "dtype", None), device),
            use_safetensors=True,
            output_loading_info=True,
        )
        if checkpoint.device_map is None:
            model = model.to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError, MemoryError) as error:
        raise _refusal(reference, field, device, error) from error
    if missing := sorted(loaded["missing_keys"]):
        problem = f"lacks {len(missing)} weights, the first is {missing[0]}; save the checkpoint again without adapters"
        raise refused(reference, field, f"{problem} (merge or unload them first)")
    return model.eval().requires_grad_(False)


def base_of(reference: ModelRef, field: str) -> ModelRef | None:
    """An adapter's base, as its config names it; None for a whole model. RequestError where an adapter names none."""
    file = file_of(reference, ADAPTER_CONFIG, field)
    if file is None:
        return None
    settings = json_object(file)
    if not settings:
        raise RequestError(
            f"{field} = {shown(reference)}: its {ADAPTER_CONFIG} is not valid JSON or empty; save the adapter again"
        )
    base = settings.get("base_model_name_or_path")
    if not base:
        remedy = f"write base_model_name_or_path into its {ADAPTER_CONFIG}"
        raise refused(reference, field, f"is an adapter that names no base; {remedy}")
    whole = {"path": str(base), "revision": settings.get("revision"), "subfolder": None, "gguf_file": None}
    return reference.model_copy(update=whole)


def check_base(before: ModelRef, after: ModelRef, base: ModelRef) -> None:
    """Raises RequestError unless the adapter `after` on `base` was trained on `before`: the same place or weights."""
    if base.path == before.path and base.revision in (None, before.revision, known_commit(before)):
        return
    folder = _folder(before, "models.before")
    try:
        base_folder = _folder(base, "models.after")
    except RequestError:
        base_folder = None
    if folder is not None and base_folder is not None:
        same = folder.resolve() == base_folder.resolve()
        if same or ((weights := weights_hash(folder)) and weights == weights_hash(base_folder)):
            return
    problem = (
        f"is an adapter whose base differs: it was trained on {shown(base)}, and models.before is {shown(before)}; set "
        f"models.before to its base, or correct base_model_name_or_path in its {ADAPTER_CONFIG} where that has moved"
    )
    raise refused(after, "models.after", problem)


def twin(model: Any, replaced: Mapping[int, Any] | None = None) -> Any:
    """A second tree of modules over the very same weights: adapters put on one are not in the other.

    It costs the memory of the Python objects. What changes weights in place changes both. `replaced` gives other
    modules in place of some, by their `id`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, {**shared, **(replaced or {})})


def with_adapter(model: Any, reference: ModelRef, field: str) -> Any:
    """The model with the adapter's layers in its tree, active, without gradients; its own weights are not changed.

    Raises RequestError where the adapter is no LoRA, is pickled, or its tensors are not those that the model needs.
    """
    return _with_peft(model, reference, field).get_base_model().eval().requires_grad_(False)


def _with_peft(model: Any, reference: ModelRef, field: str) -> Any:
    """Peft's model around the model, with the adapter's tensors."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    config, file = (file_of(reference, name, field) for name in (ADAPTER_CONFIG, _ADAPTER_WEIGHTS))
    kind = json_object(config).get("peft_type") if config is not None else None
    if kind != "LORA":
        raise refused(reference, field, f"is an adapter of the kind {kind}; only LoRA can be loaded")
    if file is None:
        pickled = file_of(reference, "adapter_model.bin", field) is not None
        contents = "adapter_model.bin, which is pickled and not opened" if pickled else f"no {_ADAPTER_WEIGHTS}"
        raise refused(reference, field, f"has {contents}; save the adapter again as safetensors")
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
            required, stored = set(get_peft_model_state_dict(owner)), set(tensors)
            for what, names in (("lacks", required - stored), ("holds unknown", stored - required)):
                if names:
                    problem = f"{what} {len(names)} tensors, the first is {min(names)}"
                    remedy = "give the base it was trained on, or save the adapter again"
                    raise refused(reference, field, f"{problem}; {remedy}")
            set_peft_model_state_dict(owner, tensors)
        except RequestError:
            raise
        except Exception as error:
            # peft, safetensors and torch raise errors of many kinds for modules that are missing and wrong shapes.
            reason = ([type(error).__name__] + [line for line in map(str.strip, str(error).splitlines()) if line])[-1]
            problem = f"does not fit its base ({reason[:200]}); give the base it was trained on"
            raise refused(reference, field, problem) from error
    return owner


def _folder(reference: ModelRef, field: str) -> Path | None:
    """Where the whole checkpoint lies on this machine: its folder, or the snapshot in the hub's cache."""
    file = file_of(located(reference, field), "config.json", field)
    return file.parent if file is not None else None


def _refusal(reference: ModelRef, field: str, device: str, error: Exception) -> RequestError:
    if ran_out_of_memory(error):
        return RequestError(
            f"{field} = {shown(reference)}: the memory of {device} is too small for its weights; set its dtype to "
            "float16, run fewer --workers, or use a larger machine"
        )
    message = first_line(error)[:200].rstrip(". ")
    about_attention = any(word in message.lower() for word in ("attention", "flash", "attn_implementation", "sdpa"))
    causes = {"attn_implementation": (about_attention, "sdpa"), "device_map": (not isinstance(error, OSError), "auto")}
    for option, (possible, remedy) in causes.items():
        if possible and (value := getattr(reference, option)) is not None:
            return RequestError(
                f"{field}.{option} = {value} cannot be used here ({message}); set it to {remedy} or leave it out"
            )
    return unloadable(reference, field, "a causal language model in safetensors", error)


def _unknown(reference: ModelRef, field: str, error: Exception) -> RequestError:
    """A configuration that transformers refused: its own code, an architecture from later on, or something else."""
    if "trust_remote_code" in str(error):
        remedy = "give a checkpoint of an architecture that transformers has"
        return refused(reference, field, f"needs code of its own, which is never run; {remedy}")
    if kind := re.search(r"model type `([^`]+)`", str(error)):
        problem = f"is of the architecture {kind[1]}, which transformers {version('transformers')} does not know"
        return refused(reference, field, f"{problem}; upgrade transformers or give another checkpoint")
    return unloadable(reference, field, "a model that transformers knows", error)


def _source(checkpoint: ModelRef) -> dict[str, Any]:
    """The arguments of from_pretrained that say where; code that comes with a checkpoint is never run."""
    where = checkpoint.model_dump(include={"revision", "subfolder"}, exclude_none=True)
    return {"trust_remote_code": False, "local_files_only": bool(checkpoint.revision) and offline(), **where}


def _quiet() -> None:
    from transformers.utils import logging as transformers_logging

    logging.getLogger("peft").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
