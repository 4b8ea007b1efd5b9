"""Two checkpoints that share a tokenizer: loaded, or refused in one line that says what to change.

What can be refused before weights are loaded is: files, tokenizers, templates, vocabulary, context, memory.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datablame.config.schema import ModelRef, Models, Study
from datablame.engine.files import digest
from datablame.errors import RequestError
from datablame.models.chat import render_prompt
from datablame.models.device import chosen_device, free_bytes, weights_dtype
from datablame.models.load import base_of, check_base, load_config, load_model, load_tokenizer, twin, with_adapter
from datablame.models.source import check_weights, located

PROBE = "Hello, what's 12 + 345?\n\tNaïve café: 東京 <b>x</b>  y"


class Pair(NamedTuple):
    """Both checkpoints in evaluation mode; ids from `vocabulary_size` on are padding rows of the embedding.

    Where after is a LoRA adapter on before, both are trees of modules over one set of weights.
    """

    tokenizer: Any
    before: Any
    after: Any
    vocabulary_size: int
    stop_ids: tuple[int, ...]


class Checked(NamedTuple):
    """Models that were seen to fit together."""

    models: Models
    """With commits for branches and tags, folders for GGUF files, and a device for `auto`: later loads get the same."""
    configs: Mapping[str, Any]
    """The architecture's settings of `models.before` and `models.after`."""
    tokenizer: Any
    """Of both, with the chat template that was chosen."""


def load_pair(study: Study) -> Pair:
    """The study's pair, after its tokenizers agreed and its embeddings were seen to hold every token."""
    tokenizer, models = study_tokenizer(study), study.models
    assert models is not None
    size, device = vocabulary_of(tokenizer), chosen_device(models.device)
    before = load_model(models.before, device=device, field="models.before")
    checkpoint = located(models.after, "models.after")
    base = base_of(checkpoint, "models.after")
    if base is None:
        after = load_model(models.after, device=device, field="models.after")
    else:
        check_base(models.before, models.after, base)
        after = with_adapter(twin(before), checkpoint, "models.after")
    for field, model in (("models.before", before), ("models.after", after)):
        _check_rows(field, model.get_input_embeddings().num_embeddings, size)
    return Pair(tokenizer, before, after, size, stop_tokens(tokenizer, after))


def preflight(models: Models, *, workers: int = 1, commits: Mapping[str, str] | None = None) -> Checked:
    """Refuse what cannot work before any weights are loaded; `workers` is how many processes load the models.

    `commits` names those of `before` and `after` that are to be taken instead of what their revisions name today.
    Raises RequestError: one line with the first problem and its remedy.
    """
    device, checkpoints = chosen_device(models.device), {}
    for name, reference in (("before", models.before), ("after", models.after)):
        if commits and name in commits:
            reference = reference.model_copy(update={"revision": commits[name]})
        checkpoints[f"models.{name}"] = located(reference, f"models.{name}")
    before, after = checkpoints.values()
    base_of_after = base_of(after, "models.after")
    if base_of_after is not None:
        check_base(models.before, models.after, base_of_after)
    configs, sizes = {}, {}
    for field, checkpoint in checkpoints.items():
        base = base_of(checkpoint, field)
        whole = checkpoint if base is None else located(base, field)
        configs[field] = load_config(whole, field=field)
        check_weights(whole, field)
        sizes[field] = weights_bytes(configs[field], weights_dtype(checkpoint.dtype, configs[field].dtype, device))
    tokenizer = agreed_tokenizer(before, after, models.chat_template)
    for field, config in configs.items():
        _check_rows(field, config.get_text_config().vocab_size, vocabulary_of(tokenizer))
    needed_bytes = sizes["models.before"] + (sizes["models.after"] if base_of_after is None else 0)
    _check_memory(needed_bytes, workers if device == "cpu" else 1, device)
    pinned = models.model_copy(update={"before": before, "after": after, "device": device})
    return Checked(pinned, configs, tokenizer)


def study_tokenizer(study: Study) -> Any:
    """The tokenizer of both checkpoints with the chat template that the study names."""
    if study.models is None:
        raise RequestError("models is missing; give before and after, or an organism that brings them")
    return agreed_tokenizer(study.models.before, study.models.after, study.models.chat_template)


def agreed_tokenizer(before: ModelRef, after: ModelRef, chat_template: str | None = None) -> Any:
    """The tokenizer of `after` with the chat template that the study names.

    Compared are the map from tokens to ids, the special tokens (not the padding token, which is always masked), the
    ids of a probe, and the chat templates, unless `chat_template` names one (`before`, `after` or the path of a file);
    a `before` without a template is not held against it. Raises RequestError with the first difference, or where a
    template is not there.
    """
    first = load_tokenizer(before, field="models.before")
    second = load_tokenizer(after, field="models.after")
    difference = _first_difference(first, second)
    if difference:
        raise RequestError(f"models.before and models.after: {difference}; use checkpoints with one tokenizer")
    if chat_template is None:
        _check_templates(first, second)
    else:
        second.chat_template = _named_template(chat_template, first, second)
    return second


def template_hash(tokenizer: Any) -> str | None:
    """The hash of a tokenizer's chat template, None where it has none."""
    return digest(tokenizer.chat_template) if tokenizer.chat_template else None


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_context(configs: Mapping[str, Any], lengths: Sequence[tuple[str, int]], max_new_tokens: int) -> None:
    """Raises RequestError where a prompt (id, tokens) and its output do not fit a checkpoint's context."""
    if not lengths:
        return
    longest, tokens = max(lengths, key=lambda length: length[1])
    for field, config in configs.items():
        context = getattr(config, "max_position_embeddings", None)
        if context is not None and tokens + max_new_tokens > context:
            raise RequestError(
                f"surface.max_new_tokens = {max_new_tokens} and the {tokens} tokens of prompt {longest} are more than "
                f"the context of {context} tokens of {field}; lower it or shorten the prompt"
            )


def stop_tokens(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """The ids that end an output: the tokenizer's EOS and those of the model's generation settings."""
    settings = getattr(model, "generation_config", None)
    configured = getattr(settings, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return tuple(sorted({int(token) for token in ids if token is not None}))


def weights_bytes(config: Any, dtype: torch.dtype) -> int:
    """What a model of this configuration occupies; tied weights count once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return int(numbers * torch.finfo(dtype).bits // 8)


def _check_rows(field: str, rows: int, size: int) -> None:
    """Raises RequestError where an embedding has fewer rows than the tokenizer has tokens; more are padding."""
    if rows < size:
        raise RequestError(
            f"{field}: its embedding has {rows} rows for the {size} tokens of its tokenizer; "
            "use the tokenizer that the checkpoint was trained with"
        )


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


def _first_difference(first: Any, second: Any) -> str | None:
    texts, others = ({token: text for text, token in tokenizer.get_vocab().items()} for tokenizer in (first, second))
    for token in sorted(texts.keys() | others.keys()):
        if texts.get(token) != others.get(token):
            one, other = (repr(known[token]) if token in known else "unused" for known in (texts, others))
            return f"token id {token} is {one} in one and {other} in the other"
    for name in ("bos_token", "eos_token"):
        if getattr(first, name) != getattr(second, name):
            return f"{name} is {getattr(first, name)!r} in one and {getattr(second, name)!r} in the other"
    special = (set(first.all_special_tokens) ^ set(second.all_special_tokens)) - {first.pad_token, second.pad_token}
    if special:
        return f"{min(special)!r} is a special token in one and not in the other"
    ids, other_ids = (tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (first, second))
    if ids != other_ids:
        return f"{PROBE!r} is cut into {len(ids)} tokens by one and into {len(other_ids)} by the other"
    return None


def _check_templates(first: Any, second: Any) -> None:
    hashes = template_hash(first), template_hash(second)
    if hashes[0] is None or hashes[1] is None or hashes[0] == hashes[1]:
        return
    text, other = render_prompt(first, PROBE), render_prompt(second, PROBE)
    if text == other:
        where = f"though one user turn is written alike ({hashes[0][:8]} and {hashes[1][:8]})"
    else:
        index = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(text, other, strict=False)))
        pieces = (repr(rendered[index : index + 24]) for rendered in (text, other))
        where = f"from character {index} of a user turn on: {' in one and '.join(pieces)} in the other"
    raise RequestError(
        f"models.before and models.after: the chat templates differ, {where}; set models.chat_template to before, "
        "after or the path of a template"
    )


def _named_template(name: str, first: Any, second: Any) -> Any:
    if name in ("before", "after"):
        template = (first if name == "before" else second).chat_template
        if not template:
            raise RequestError(f"models.chat_template = {name}: that checkpoint has none; name another or a file")
        return template
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"models.chat_template = {name} cannot be read ({error}); give before, after or the path of a template"
        ) from None
