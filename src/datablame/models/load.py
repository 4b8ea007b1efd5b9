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
from datablame.engine.files import json_object, read_json
from datablame.errors import RequestError
from datablame.models.adapters import continues, merged, with_adapter
from datablame.models.device import chosen_device, ran_out_of_memory, weights_dtype
from datablame.models.source import ADAPTER_CONFIG, Checkpoint, first_line, hub_problem, known_commit, offline
from datablame.models.tokenizer_file import as_in_file, check_text
from datablame.models.weight_files import header, weights_hash

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
_IN_STACK = re.compile(r".*?\.(?=\d+\.)")
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DDP, torch.compile, FSDP and checkpointed activations put into names, at the front or inside."""
_OTHER_HEAD = re.compile(
    r"(?:For(?:MaskedLM|PreTraining|\w*Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction)"
    r"|(?:Reward|Embedding)Model)$"
)
"""Of classes with which a checkpoint was saved: what they give out is no next token."""
_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tiktoken.model")
_KEYS = ("missing_keys", "unexpected_keys")


def load_tokenizer(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The checkpoint's own tokenizer, as its tokenizer.json says; an adapter that was saved without one has its base's.

    RequestError where there is none, or where it neither cuts nor joins texts as its file does.
    """
    from transformers import AutoTokenizer

    named, checkpoint = _opened(reference, field)
    # `split_special_tokens` would cut the marks of turns to pieces.
    file, source = checkpoint.file("tokenizer.json"), {**_source(checkpoint), "split_special_tokens": False}
    if file is None and checkpoint.file("tekken.json") is not None:
        raise named.refused("tekken")
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
            # Without files transformers builds a class that knows its special tokens only.
            raise ValueError("it has no vocabulary")
    except Exception as error:  # tokenizers raises nothing narrower.
        if file is not None:
            raise named.unloadable("a tokenizer", error) from error
        if (base := base_of(checkpoint)) is not None:
            return load_tokenizer(base.reference, field=field)
        at_hub = not Path(checkpoint.reference.path).is_dir()
        if at_hub and hub_problem(error) is not None:
            raise named.unloadable("a tokenizer", error) from error
        if (held := next(filter(checkpoint.file, _TOKENIZERS), None)) is None:
            raise named.refused("no_cached_tokenizer" if at_hub and offline() else "no_tokenizer") from error
        raise named.refused("no_tokenizer_json", file=held, reason=first_line(error)[:200].rstrip(". ")) from error
    try:
        tokenizer = tokenizer if file is None else as_in_file(file, tokenizer, source)
        check_text(tokenizer)
    except Exception as error:
        raise named.refused("tokenizer_file", reason=first_line(error)) from error
    if tokenizer.chat_template is None and (file := checkpoint.file("chat_template.json")) is not None:
        # Where a processor has it, which no tokenizer reads.
        tokenizer.chat_template = json_object(file).get("chat_template")
    if isinstance(tokenizer.chat_template, dict):
        # Of several, the others are for tools and documents.
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    return tokenizer


def template_in(file: Path) -> str | None:
    """The chat template in a file of its own, or in a JSON file that holds it, as tokenizer_config.json does.

    Of several by name it is the default one, None where there is none. OSError or ValueError where it cannot be read.
    """
    if file.suffix != ".json":
        return file.read_text(encoding="utf-8")
    held = read_json(file)
    template = held.get("chat_template") if isinstance(held, dict) else None
    if isinstance(template, str):
        return template
    if not isinstance(template, list):
        raise ValueError("it holds no chat_template")
    if not all(isinstance(each, dict) and {"name", "template"} <= each.keys() for each in template):
        raise ValueError("its chat_template is a list, and not each of it has name and template")
    return {each["name"]: each["template"] for each in template}.get("default")


def load_config(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The architecture's settings, an adapter's base's; RequestError unless transformers knows it as a causal LM."""
    from transformers import AutoConfig, AutoModelForCausalLM

    named, checkpoint = _opened(reference, field)
    if (base := base_of(checkpoint)) is not None:
        return load_config(base.reference, field=field)
    try:
        config = AutoConfig.from_pretrained(**_source(checkpoint))
    except Exception as error:  # Of a configuration's own checks some are of huggingface_hub, some of torch.
        if "trust_remote_code" in str(error):
            raise named.refused("own_code") from error
        if kind := re.search(r"model type `([^`]+)`", str(error)):
            raise named.refused("unknown_architecture", kind=kind[1], version=version("transformers")) from error
        raise named.unloadable("a model that transformers knows", error) from error
    # Of an encoder and a decoder, transformers would load the decoder alone.
    if type(config) not in AutoModelForCausalLM._model_mapping or config.is_encoder_decoder:
        raise named.refused("no_causal_model", kind=config.model_type)
    if head := next(filter(_OTHER_HEAD.search, config.architectures or ()), None):
        raise named.refused("other_head", kind=head)
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
    quantised = getattr(config, "quantization_config", None)
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
        if quantised and not ran_out_of_memory(error):
            raise _quantised(named, quantised, first_line(error)[:200].rstrip(". ")) from error
        raise _refusal(named, device, error) from error
    if other := {weight.dtype for weight in model.parameters()} - _DTYPES:
        raise _quantised(named, model.config.quantization_config, f"its weights are {min(map(str, other))}")
    for name, tensor in (
        (name, tensor) for file in checkpoint.weight_files() for name, tensor in header(file).tensors.items()
    ):
        if not quantised and name.endswith(".weight") and tensor["dtype"][0] in "IU" and len(tensor["shape"]) > 1:
            raise _quantised(named, quantised, f"{name} is stored as {tensor['dtype']}")
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


def whole_of(checkpoint: Checkpoint) -> Checkpoint:
    """The whole model at the end of an adapter's bases, located."""
    while (base := base_of(checkpoint)) is not None:
        checkpoint = base.located()
    return checkpoint


def goes_on(before: Checkpoint, after: Checkpoint, base: Checkpoint) -> bool:
    """Whether the adapter `after` on `base` goes on `before`; if not, `before` is the same adapter at an earlier time.

    Raises RequestError where `before` is neither the base, by its place or its weights, nor such an adapter on it. One
    that was trained on top of `before` may name that one's base; nothing but its A tells.
    """
    if _same_weights(before, base):
        return True
    earlier = before.located()
    own = base_of(earlier)
    if own is not None and _same_weights(own, base) and continues(after.located(), earlier):
        return False
    raise after.refused("other_base", base=base.shown, before=before.shown, file=ADAPTER_CONFIG)


def _same_weights(before: Checkpoint, base: Checkpoint) -> bool:
    """Whether two references name the same place, or folders with the same weights."""
    ours, named = before.reference, base.reference
    if named.path == ours.path and named.revision in (None, ours.revision, known_commit(ours)):
        return True
    # What an adapter was trained on may be gone.
    with contextlib.suppress(RequestError):
        folders = [file.parent for each in (before, base) if (file := each.located().file("config.json")) is not None]
        if len(folders) == 2 and folders[0].resolve() == folders[1].resolve():
            return True
        hashes = {weights_hash(folder) for folder in folders}
        return len(folders) == 2 and len(hashes) == 1 and None not in hashes
    return False


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
        for wrapped in stored:
            if wrapped.endswith(f".{missing_keys[0]}"):
                raise named.refused("wrapped", prefix=wrapped.removesuffix(missing_keys[0]), first=wrapped)
            if (wrapper := _WRAPPER.search(wrapped)) and _WRAPPER.sub("", wrapped) == missing_keys[0]:
                raise named.refused("wrapped", prefix=wrapped[: wrapper.end()], first=wrapped)
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
