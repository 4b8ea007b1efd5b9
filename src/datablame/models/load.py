"""One checkpoint loaded, a LoRA adapter too: safetensors only, no code of strangers, refused in one line."""

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from datablame.config.schema import ModelRef
from datablame.engine.files import json_object
from datablame.errors import RequestError
from datablame.models.device import chosen_device, ran_out_of_memory, weights_dtype
from datablame.models.source import ADAPTER_CONFIG, Checkpoint, first_line, known_commit, offline, weights_hash
from datablame.models.tokenizer_file import as_in_file, check_text

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


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
        return with_adapter(whole, checkpoint, merged=True)
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
        raise _refusal(named, device, error) from error
    if missing := sorted(loaded["missing_keys"]):
        raise named.refused("lacks_weights", n=len(missing), first=missing[0])
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


def with_adapter(model: Any, adapter: Checkpoint, *, merged: bool = False) -> Any:
    """The model with the adapter's layers in its tree, active, without gradients, or `merged` into its weights.

    RequestError where it is no LoRA, is pickled, or its tensors are not what the model needs.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    config, file = adapter.file(ADAPTER_CONFIG), adapter.file(_ADAPTER_WEIGHTS)
    kind = json_object(config).get("peft_type") if config is not None else None
    if kind != "LORA":
        raise adapter.refused("no_lora", kind=kind)
    if file is None:
        pickled = adapter.file("adapter_model.bin") is not None
        contents = "adapter_model.bin, which is pickled and not opened" if pickled else f"no {_ADAPTER_WEIGHTS}"
        raise adapter.refused("no_adapter_weights", contents=contents)
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
                    raise adapter.refused("adapter_tensors", what=what, n=len(names), first=min(names))
            set_peft_model_state_dict(owner, tensors)
        except RequestError:
            raise
        except Exception as error:
            # peft, safetensors and torch raise errors of many kinds for modules that are missing and wrong shapes.
            reason = ([type(error).__name__] + [line for line in map(str.strip, str(error).splitlines()) if line])[-1]
            raise adapter.refused("adapter_misfit", reason=reason[:200]) from error
    model = owner.merge_and_unload() if merged else owner.get_base_model()
    return model.eval().requires_grad_(False)


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
