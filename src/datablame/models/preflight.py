"""What can be refused before weights are loaded: files, tokenizers, templates, vocabulary, context, memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from datablame.config.schema import ModelRef, Models
from datablame.errors import RequestError
from datablame.models.adapters import base_of, check_base, is_adapter
from datablame.models.device import chosen_device, free_bytes, weights_dtype
from datablame.models.load import load_config
from datablame.models.pair import check_rows
from datablame.models.source import check_weights, located
from datablame.models.tokenizer import agreed_tokenizer, vocabulary_of


class Checked(NamedTuple):
    """Models that were seen to fit together."""

    models: Models
    """With commits for branches and tags, folders for GGUF files, and a device for `auto`: later loads get the same."""
    configs: Mapping[str, Any]
    """The architecture's settings of `models.before` and `models.after`."""
    tokenizer: Any
    """Of both, with the chat template that was chosen."""


def preflight(models: Models, *, workers: int = 1, commits: Mapping[str, str] | None = None) -> Checked:
    """Refuse what cannot work before any weights are loaded; `workers` is how many processes load the models.

    `commits` names those of `before` and `after` that are to be taken instead of what their revisions name today.

    Raises:
        RequestError: one line with the first problem and its remedy.
    """
    device = chosen_device(models.device)
    checkpoints = {}
    for name in ("before", "after"):
        reference: ModelRef = getattr(models, name)
        if name in (commits or {}):
            reference = reference.model_copy(update={"revision": (commits or {})[name]})
        checkpoints[f"models.{name}"] = located(reference, f"models.{name}")
    before, after = checkpoints.values()
    shared = is_adapter(after, "models.after")
    if shared:
        check_base(models.before, models.after)
    configs, sizes = {}, {}
    for field, checkpoint in checkpoints.items():
        whole = located(base_of(checkpoint, field), field) if is_adapter(checkpoint, field) else checkpoint
        configs[field] = load_config(whole, field=field)
        check_weights(whole, field)
        dtype = weights_dtype(checkpoint.dtype, configs[field].dtype, device)
        sizes[field] = weights_bytes(configs[field], dtype)
    tokenizer = agreed_tokenizer(before, after, models.chat_template)
    for field, config in configs.items():
        check_rows(field, config.get_text_config().vocab_size, vocabulary_of(tokenizer))
    needed_bytes = sizes["models.before"] + (0 if shared else sizes["models.after"])
    _check_memory(needed_bytes, workers if device == "cpu" else 1, device)
    pinned = models.model_copy(update={"before": before, "after": after, "device": device})
    return Checked(pinned, configs, tokenizer)


def weights_bytes(config: Any, dtype: torch.dtype) -> int:
    """What a model of this configuration occupies; tied weights count once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return int(numbers * torch.finfo(dtype).bits // 8)


def _check_memory(size_bytes: int, processes: int, device: str) -> None:
    """Raises RequestError where the weights alone are more than what is free; batches adapt to the rest."""
    needed, free = processes * size_bytes, free_bytes(device)
    if needed > free:
        where = f" in {processes} processes" if processes > 1 else ""
        fewer = "use fewer --workers, " if processes > 1 else ""
        raise RequestError(
            f"models: the weights of before and after take {needed / 1e9:.1f} GB{where}, and {free / 1e9:.1f} GB of "
            f"memory are free on {device}; {fewer}set their dtype to float16 or bfloat16, or use a larger machine"
        )
