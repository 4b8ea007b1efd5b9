"""One checkpoint loaded: safetensors only, no code of strangers, refused in one line that says what to change."""

import logging
import re
from importlib.metadata import version
from typing import Any

import torch

from datablame.config.schema import ModelRef
from datablame.errors import RequestError
from datablame.models.adapters import base_of, is_adapter, merged
from datablame.models.device import chosen_device, ran_out_of_memory, weights_dtype
from datablame.models.source import check_weights, located, offline, shown, unloadable


def load_tokenizer(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The checkpoint's own tokenizer; an adapter that was saved without one has its base's."""
    from transformers import AutoTokenizer

    _quiet()
    checkpoint = located(reference, field)
    try:
        return AutoTokenizer.from_pretrained(checkpoint.path, **_source(checkpoint))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if is_adapter(checkpoint, field):
            return load_tokenizer(base_of(checkpoint, field), field=field)
        raise unloadable(reference, field, "a tokenizer", error) from error


def load_config(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The settings of the checkpoint's architecture; an adapter has its base's.

    Raises:
        RequestError: this release of transformers does not know the architecture, or it is no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _quiet()
    checkpoint = located(reference, field)
    if is_adapter(checkpoint, field):
        return load_config(base_of(checkpoint, field), field=field)
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, **_source(checkpoint))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unknown(reference, field, error) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise RequestError(
            f"{field} = {shown(reference)} is of the type {config.model_type}, which is no causal language model of "
            "this release of transformers; give another checkpoint"
        )
    return config


def load_model(
    reference: ModelRef, *, device: str = "cpu", dtype: torch.dtype | None = None, field: str = "models.after"
) -> Any:
    """The checkpoint in evaluation mode without gradients; a LoRA adapter is merged into its base.

    Raises:
        RequestError: there is no such checkpoint, it holds no safetensors, memory is too small for its weights, or it
            lacks weights, which transformers would initialise at random.
    """
    from transformers import AutoModelForCausalLM

    checkpoint, device = located(reference, field), chosen_device(device)
    if is_adapter(checkpoint, field):
        base = load_model(base_of(checkpoint, field), device=device, dtype=dtype, field=field)
        return merged(base, checkpoint, field)
    config = load_config(checkpoint, field=field)
    check_weights(checkpoint, field)
    options = {name: getattr(checkpoint, name) for name in ("device_map", "attn_implementation")}
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            **_source(checkpoint),
            **{name: value for name, value in options.items() if value is not None},
            config=config,
            dtype=dtype or weights_dtype(checkpoint.dtype, getattr(config, "dtype", None), device),
            use_safetensors=True,
            output_loading_info=True,
        )
        if checkpoint.device_map is None:
            model = model.to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError, MemoryError) as error:
        raise _refusal(reference, field, device, error) from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise RequestError(
            f"{field} = {shown(reference)} lacks {len(missing)} weights, the first is {missing[0]}; "
            "save the checkpoint again without adapters (merge or unload them first)"
        )
    return model.eval().requires_grad_(False)


def _refusal(reference: ModelRef, field: str, device: str, error: Exception) -> RequestError:
    if ran_out_of_memory(error):
        return RequestError(
            f"{field} = {shown(reference)}: the memory of {device} is too small for its weights; set its dtype to "
            "float16, run fewer --workers, or use a larger machine"
        )
    message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
    about_attention = any(word in message.lower() for word in ("attention", "flash", "attn_implementation", "sdpa"))
    if reference.attn_implementation is not None and about_attention:
        return RequestError(
            f"{field}.attn_implementation = {reference.attn_implementation} cannot be used here ({message}); "
            "set it to sdpa or leave it out"
        )
    if reference.device_map is not None and not isinstance(error, OSError):
        return RequestError(
            f"{field}.device_map = {reference.device_map} cannot be used here ({message}); "
            "set it to auto or leave it out"
        )
    return unloadable(reference, field, "a causal language model in safetensors", error)


def _unknown(reference: ModelRef, field: str, error: Exception) -> RequestError:
    """A configuration that transformers refused: its own code, an architecture from later on, or something else."""
    message = str(error)
    if "trust_remote_code" in message:
        return RequestError(
            f"{field} = {shown(reference)} needs code of its own, which is never run; give a checkpoint of an "
            "architecture that transformers has"
        )
    kind = re.search(r"model type `([^`]+)`", message)
    if kind is not None:
        return RequestError(
            f"{field} = {shown(reference)} is of the architecture {kind[1]}, which transformers "
            f"{version('transformers')} does not know; upgrade transformers or give another checkpoint"
        )
    return unloadable(reference, field, "a model that transformers knows", error)


def _source(checkpoint: ModelRef) -> dict[str, Any]:
    """The arguments of from_pretrained that say where; code that comes with a checkpoint is never run."""
    names = {"revision": checkpoint.revision, "subfolder": checkpoint.subfolder}
    return {
        "trust_remote_code": False,
        "local_files_only": offline() if checkpoint.revision else False,
        **{name: value for name, value in names.items() if value is not None},
    }


def _quiet() -> None:
    from transformers.utils import logging as transformers_logging

    logging.getLogger("peft").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
