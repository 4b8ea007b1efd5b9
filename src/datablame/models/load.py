"""One checkpoint loaded, a LoRA adapter too: safetensors only, no code of strangers, refused in one line."""

import contextlib
import copy
import logging
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from datablame.config.schema import ModelRef
from datablame.engine.files import json_object
from datablame.errors import RequestError
from datablame.models.adapters import merged, with_adapter
from datablame.models.device import chosen_device, ran_out_of_memory, weights_dtype
from datablame.models.source import ADAPTER_CONFIG, Checkpoint, first_line, known_commit, offline
from datablame.models.tokenizer_file import as_in_file, check_text
from datablame.models.weight_files import header, weights_hash

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
_IN_STACK = re.compile(r".*?\.(?=\d+\.)")
_KEYS = ("missing_keys", "unexpected_keys")


def load_tokenizer(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The checkpoint's own tokenizer, as its tokenizer.json says; an adapter that was saved without one has its base's.

    RequestError where there is none, or where it neither cuts nor joins texts as its file does.
    """
    from transformers import AutoTokenizer

    named, checkpoint = _opened(reference, field)
    # `split_special_tokens` would cut the marks of turns to pieces.
    file, source = checkpoint.file("tokenizer.json"), {**_source(checkpoint), "split_special_tokens": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
            # Without files transformers builds a class that knows its special tokens only.
            raise ValueError("it has no vocabulary")
    except Exception as error:  # tokenizers raises nothing narrower.
        if file is None and (base := base_of(checkpoint)) is not None:
            return load_tokenizer(base.reference, field=field)
        raise named.unloadable("a tokenizer", error) from error
    try:
        tokenizer = tokenizer if file is None else as_in_file(file, tokenizer, source)
        check_text(tokenizer)
    except Exception as error:
        raise named.refused("tokenizer_file", reason=first_line(error)) from error
    return tokenizer


def load_config(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The architecture's settings, an adapter's base's; RequestError unless transformers knows it as a causal LM."""
    from transformers import AutoConfig, AutoModelForCausalLM

    named, checkpoint = _opened(reference, field)
    if (base := base_of(checkpoint)) is not None:
        return load_config(base.reference, field=field)
    try:
        config = AutoConfig.from_pretrained(**_source(checkpoint))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise named.refused("own_code") from error
        if kind := re.search(r"model type `([^`]+)`", str(error)):
            raise named.refused("unknown_architecture", kind=kind[1], version=version("transformers")) from error
        raise named.unloadable("a model that transformers knows", error) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise named.refused("no_causal_model", kind=config.model_type)
    return config


def load_model(
    reference: ModelRef, *, device: str = "cpu", dtype: torch.dtype | None = None, field: str = "models.after"
) -> Any:
    """The checkpoint in evaluation mode without gradients; a LoRA adapter is merged into its base.

    RequestError where it isn't there, holds no safetensors or not all weights, or where memory is too small for them.
    """
    from transformers import AutoModelForCausalLM

    (named, checkpoint), device = _opened(reference, field), chosen_device(device)
    if (base := base_of(checkpoint)) is not None:
        whole = load_model(base.reference, device=device, dtype=dtype, field=field)
        return merged(with_adapter(whole, checkpoint), checkpoint)
    located = checkpoint.reference
    config = load_config(located, field=field)
    checkpoint.check_weights()
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            **_source(checkpoint),
            **located.model_dump(include={"device_map", "attn_implementation"}, exclude_none=True),
            config=config,
            dtype=dtype or weights_dtype(located.dtype, getattr(config, "dtype", None), device),
            use_safetensors=True,
            output_loading_info=True,
        )
        if located.device_map is None:
            model = model.to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError, MemoryError) as error:
        if (quantised := getattr(config, "quantization_config", None)) and not ran_out_of_memory(error):
            raise _quantised(named, quantised, first_line(error)[:200].rstrip(". ")) from error
        raise _refusal(named, device, error) from error
    if other := {weight.dtype for weight in model.parameters()} - _DTYPES:
        raise _quantised(named, model.config.quantization_config, f"its weights are {min(map(str, other))}")
    _check_names(named, model, checkpoint.weight_files(), **{key: sorted(loaded[key]) for key in _KEYS})
    return model.eval().requires_grad_(False)


def check_options(named: Checkpoint, config: Any, device: str) -> None:
    """RequestError where transformers has no such attention kernel, or no such device is here; no weights are read."""
    from transformers import AutoModelForCausalLM

    reference = named.reference
    try:
        if reference.attn_implementation is not None:
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(config, attn_implementation=reference.attn_implementation)
        if reference.device_map not in (None, *_DEVICE_MAPS):
            torch.empty(0, device=reference.device_map)
    except (OSError, ValueError, RuntimeError, ImportError, AssertionError) as error:
        raise _refusal(named, device, error) from error


def base_of(adapter: Checkpoint) -> Checkpoint | None:
    """An adapter's base, as its config names it; None for a whole model. RequestError where an adapter names none."""
    if (file := adapter.file(ADAPTER_CONFIG)) is None:
        return None
    settings = json_object(file)
    if not settings:
        raise adapter.refused("adapter_config", file=ADAPTER_CONFIG)
    if not (base := settings.get("base_model_name_or_path")):
        raise adapter.refused("adapter_without_base", file=ADAPTER_CONFIG)
    whole = {"path": str(base), "revision": settings.get("revision"), "subfolder": None, "gguf_file": None}
    return adapter._replace(reference=adapter.reference.model_copy(update=whole))


def check_base(before: Checkpoint, after: Checkpoint, base: Checkpoint) -> None:
    """Raises RequestError unless the adapter `after` on `base` was trained on `before`: the same place or weights."""
    ours, named = before.reference, base.reference
    if named.path == ours.path and named.revision in (None, ours.revision, known_commit(ours)):
        return
    # What an adapter was trained on may be gone.
    with contextlib.suppress(RequestError):
        folders = [file.parent for each in (before, base) if (file := each.located().file("config.json")) is not None]
        if len(folders) == 2 and folders[0].resolve() == folders[1].resolve():
            return
        hashes = {weights_hash(folder) for folder in folders}
        if len(folders) == 2 and len(hashes) == 1 and None not in hashes:
            return
    raise after.refused("other_base", base=base.shown, before=before.shown, file=ADAPTER_CONFIG)


def twin(model: Any, replaced: Mapping[int, Any] | None = None) -> Any:
    """A second tree of modules over the very same weights: adapters put on one are not in the other.

    What changes weights in place changes both. `replaced` gives other modules in place of some, by their `id`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, {**shared, **(replaced or {})})


def _check_names(
    named: Checkpoint, model: Any, files: Sequence[Path], missing_keys: Sequence[str], unexpected_keys: Sequence[str]
) -> None:
    """Raises RequestError where a weight is in no file, or the files hold a block's weight that the model cannot take.

    Other tensors that have no place (a value head, a vision tower) are kept in `model.unread`.
    """
    if missing_keys:
        stored = [name for file in files for name in header(file).tensors]
        wrapped = next((name for name in stored if name.endswith(f".{missing_keys[0]}")), None)
        if wrapped is not None:
            raise named.refused("wrapped", prefix=wrapped.removesuffix(missing_keys[0]), first=wrapped)
        raise named.refused("lacks_weights", n=len(missing_keys), first=missing_keys[0])
    stacks = {match[0] for name, _ in model.named_parameters() if (match := _IN_STACK.match(name))}
    inside = [name for name in unexpected_keys if (match := _IN_STACK.match(name)) and match[0] in stacks]
    if lost := [name for name in unexpected_keys if "lora_" in name] or inside:
        raise named.refused("no_place", n=len(lost), first=lost[0])
    model.unread = tuple(unexpected_keys)


def _quantised(named: Checkpoint, settings: Any, reason: str) -> RequestError:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else getattr(settings, "quant_method", None)
    return named.refused("quantised", method=getattr(method, "value", method) or "unknown", reason=reason)


def _refusal(named: Checkpoint, device: str, error: Exception) -> RequestError:
    if ran_out_of_memory(error):
        return named.refused("memory", device=device)
    message = first_line(error)[:200].rstrip(". ")
    about_attention = any(word in message.lower() for word in ("attention", "flash", "attn_implementation", "sdpa"))
    causes = {"attn_implementation": (about_attention, "sdpa"), "device_map": (not isinstance(error, OSError), "auto")}
    for option, (possible, remedy) in causes.items():
        if possible and (value := getattr(named.reference, option)) is not None:
            return named.refused("option", option=option, value=value, message=message, remedy=remedy)
    return named.unloadable("a causal language model in safetensors", error)


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of from_pretrained that say where; code that comes with a checkpoint is never run."""
    reference = checkpoint.reference
    where = reference.model_dump(include={"revision", "subfolder"}, exclude_none=True)
    local = {"local_files_only": bool(reference.revision) and offline()}
    return {"pretrained_model_name_or_path": reference.path, "trust_remote_code": False, **local, **where}


def _opened(reference: ModelRef, field: str) -> tuple[Checkpoint, Checkpoint]:
    """A checkpoint as it was named, for messages, and as it was located; the libraries are silent from here on."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("peft").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    named = Checkpoint(reference, field)
    return named, named.located()
