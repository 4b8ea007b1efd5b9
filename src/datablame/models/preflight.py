"""What can be refused before weights are loaded: files, tokenizers, templates, vocabulary, context, memory."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from datablame.errors import RequestError
from datablame.models.adapters import base_of, check_base, is_adapter
from datablame.models.device import chosen_device, free_bytes, weights_dtype
from datablame.models.load import load_config
from datablame.models.pair import check_prompts, check_rows
from datablame.models.source import check_weights, file_of, known_commit, located, weights_hash
from datablame.models.tokenizer import agreed_tokenizer, template_hash, vocabulary_of
from datablame.study.schema import ModelRef, Models, Study

_logger = logging.getLogger(__name__)


class Checked(NamedTuple):
    """A study whose models were seen to fit together, and what they are."""

    study: Study
    """With commits for branches and tags, folders for GGUF files, and a device for `auto`: later loads get the same."""
    identity: dict[str, Any]
    """For the manifest: what was asked for, commit or hash of the weights, hash of the chat template."""


def preflight(study: Study, *, workers: int = 1, commits: Mapping[str, str] | None = None) -> Checked:
    """Refuse what cannot work before any weights are loaded; `workers` is how many processes load the models.

    `commits` names those of `before` and `after` that are to be taken instead of what their revisions name today.

    Raises:
        RequestError: one line with the first problem and its remedy.
    """
    assert study.models is not None
    models = study.models
    device = chosen_device(models.device)
    workers = workers if device == "cpu" else 1
    fields = {"models.before": models.before, "models.after": models.after}
    places = {}
    for field, reference in fields.items():
        commit = (commits or {}).get(field.removeprefix("models."))
        taken = reference if commit is None else reference.model_copy(update={"revision": commit})
        places[field] = located(taken, field)
    shared = is_adapter(places["models.after"], "models.after")
    if shared:
        check_base(models.before, models.after)
    configs, sizes = {}, {}
    for field, place in places.items():
        whole = located(base_of(place, field), field) if is_adapter(place, field) else place
        configs[field] = load_config(whole, field=field)
        check_weights(whole, field)
        sizes[field] = weights_bytes(configs[field], weights_dtype(place.dtype, configs[field].dtype, device))
    tokenizer = agreed_tokenizer(places["models.before"], places["models.after"], models.chat_template)
    for field, config in configs.items():
        check_rows(field, config.get_text_config().vocab_size, vocabulary_of(tokenizer))
    check_prompts(study, tokenizer, configs)
    _check_memory(sizes["models.before"], 0 if shared else sizes["models.after"], workers, device)
    pinned = models.model_copy(
        update={"before": places["models.before"], "after": places["models.after"], "device": device}
    )
    identity = {
        **{name: _identity(models, name, places[f"models.{name}"]) for name in ("before", "after")},
        "chat_template": models.chat_template,
        "chat_template_sha256": template_hash(tokenizer),
        "device": device,
    }
    return Checked(study.model_copy(update={"models": pinned}), identity)


def weights_bytes(config: Any, dtype: torch.dtype) -> int:
    """What a model of this configuration occupies; tied weights count once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return int(numbers * torch.finfo(dtype).bits // 8)


def check_documents(reference: ModelRef, field: str, lengths: Sequence[int], max_tokens: int) -> None:
    """Raises RequestError where a document, cut to `attribute.max_tokens`, is longer than the checkpoint's context."""
    context = getattr(load_config(reference, field=field), "max_position_embeddings", None)
    longest = max(lengths, default=0)
    if context is not None and longest > context:
        raise RequestError(
            f"attribute.max_tokens = {max_tokens} lets a document of {longest} tokens through, more than the context "
            f"of {context} tokens of {field}; lower it to {context}"
        )


def _check_memory(before: int, after: int, workers: int, device: str) -> None:
    """Raises RequestError where the weights alone are more than what is free; batches adapt to the rest."""
    needed, free = workers * (before + after), free_bytes(device)
    if needed > free:
        each = f" in {workers} processes" if workers > 1 else ""
        fewer = "use fewer --workers, " if workers > 1 else ""
        raise RequestError(
            f"models: the weights of before and after take {needed / 1e9:.1f} GB{each}, and {free / 1e9:.1f} GB of "
            f"memory are free on {device}; {fewer}set their dtype to float16 or bfloat16, or use a larger machine"
        )


def _identity(models: Models, name: str, place: ModelRef) -> dict[str, Any]:
    """What the manifest says about one checkpoint; the adapter alone where it is one."""
    asked: ModelRef = getattr(models, name)
    field = f"models.{name}"
    told: dict[str, Any] = asked.model_dump(mode="json", exclude_none=True)
    commit = known_commit(place) if place.revision is not None else None
    if commit is not None:
        return {**told, "commit": commit}
    file = file_of(place, "adapter_config.json", field) or file_of(place, "config.json", field)
    try:
        hashed = weights_hash(file.parent) if file is not None else None
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{field} = {asked.path}: its safetensors are damaged ({type(error).__name__}); fetch or save it again"
        ) from error
    return {**told, "weights_sha256": hashed}
