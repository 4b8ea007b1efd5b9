"""Two checkpoints that share a tokenizer: loaded, or refused in one line, if possible before any weights are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datablame.config.schema import Models, Study
from datablame.engine.files import digest
from datablame.models.chat import render_prompt
from datablame.models.device import chosen_device, free_bytes, weights_dtype
from datablame.models.load import base_of, check_base, load_config, load_model, load_tokenizer, twin, with_adapter
from datablame.models.source import Checkpoint, refusal

PROBE = "Hello, what's 12 + 345?\n\tNaïve café: 東京 <b>x</b>  y"
_BEFORE, _AFTER = "models.before", "models.after"


class Pair(NamedTuple):
    """Both checkpoints in evaluation mode, over one set of weights where after is a LoRA adapter on before."""

    tokenizer: Any
    before: Any
    after: Any
    vocabulary_size: int
    """Ids from here on are padding rows of the embedding."""
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
    before = load_model(models.before, device=device, field=_BEFORE)
    named = Checkpoint(models.after, _AFTER)
    adapter = named.located()
    if (base := base_of(adapter)) is None:
        after = load_model(models.after, device=device, field=_AFTER)
    else:
        check_base(Checkpoint(models.before, _BEFORE), named, base)
        after = with_adapter(twin(before), adapter)
    embeddings = {_BEFORE: before.get_input_embeddings(), _AFTER: after.get_input_embeddings()}
    _check_rows({field: embedding.num_embeddings for field, embedding in embeddings.items()}, size)
    return Pair(tokenizer, before, after, size, stop_tokens(tokenizer, after))


def preflight(models: Models, *, workers: int = 1, commits: Mapping[str, str] | None = None) -> Checked:
    """RequestError with the first problem that keeps `workers` processes from loading the models and using them.

    `commits` names those of `before` and `after` that are to be taken instead of what their revisions name today.
    """
    device, named = chosen_device(models.device), (Checkpoint(models.before, _BEFORE), Checkpoint(models.after, _AFTER))
    taken = {f"models.{name}": {"revision": commit} for name, commit in (commits or {}).items()}
    before, after = (
        each._replace(reference=each.reference.model_copy(update=taken.get(each.field))).located() for each in named
    )
    adapted = base_of(after)
    if adapted is not None:
        check_base(*named, adapted)
    configs, sizes = {}, []
    for checkpoint in (before, after):
        whole = checkpoint if (base := base_of(checkpoint)) is None else base.located()
        config = configs[checkpoint.field] = load_config(whole.reference, field=whole.field)
        whole.check_weights()
        sizes.append(weights_bytes(config, weights_dtype(checkpoint.reference.dtype, config.dtype, device)))
    pinned = models.model_copy(update={"before": before.reference, "after": after.reference, "device": device})
    tokenizer = agreed_tokenizer(pinned)
    rows = {field: config.get_text_config().vocab_size for field, config in configs.items()}
    _check_rows(rows, vocabulary_of(tokenizer))
    # The weights alone; batches adapt to the rest.
    processes = workers if device == "cpu" else 1
    needed, free = processes * sum(sizes if adapted is None else sizes[:1]), free_bytes(device)
    if needed > free:
        where, fewer = (f" in {processes} processes", "use fewer --workers, ") if processes > 1 else ("", "")
        raise refusal("weights_memory", needed=needed / 1e9, free=free / 1e9, where=where, fewer=fewer, device=device)
    return Checked(pinned, configs, tokenizer)


def study_tokenizer(study: Study) -> Any:
    """The tokenizer of both checkpoints with the chat template that the study names."""
    if study.models is None:
        raise refusal("no_models")
    return agreed_tokenizer(study.models)


def agreed_tokenizer(models: Models) -> Any:
    """The tokenizer of `after` with the chat template that the study names.

    Compared are the map from tokens to ids, the special tokens (not the padding token, which is always masked), the
    ids of a probe, and the chat templates, unless `chat_template` names one or `before` has none. RequestError with
    the first difference, or where a template is not there.
    """
    first, second = load_tokenizer(models.before, field=_BEFORE), load_tokenizer(models.after, field=_AFTER)
    if difference := _first_difference(first, second):
        raise refusal("tokenizers", difference=difference)
    name = models.chat_template
    if name is None:
        if difference := _template_difference(first, second):
            raise refusal("templates", where=difference)
    elif name in ("before", "after"):
        second.chat_template = (first if name == "before" else second).chat_template
        if not second.chat_template:
            raise refusal("no_template", name=name)
    else:
        try:
            second.chat_template = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise refusal("unreadable_template", name=name, error=error) from None
    return second


def template_hash(tokenizer: Any) -> str | None:
    """The hash of a tokenizer's chat template, None where it has none."""
    return digest(tokenizer.chat_template) if tokenizer.chat_template else None


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_context(configs: Mapping[str, Any], lengths: Sequence[tuple[str, int]], max_new_tokens: int) -> None:
    """Raises RequestError where a prompt (id, tokens) and its output do not fit a checkpoint's context."""
    longest, tokens = max(lengths, key=lambda length: length[1], default=("", 0))
    for field, config in configs.items():
        context = getattr(config, "max_position_embeddings", None)
        if lengths and context is not None and tokens + max_new_tokens > context:
            values = {"tokens": tokens, "prompt": longest, "context": context, "field": field}
            raise refusal("short_context", new=max_new_tokens, **values)


def stop_tokens(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """The ids that end an output: the tokenizer's EOS and those of the model's generation settings."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return tuple(sorted({int(token) for token in ids if token is not None}))


def weights_bytes(config: Any, dtype: torch.dtype) -> int:
    """What a model of this configuration occupies; tied weights count once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return int(sum(parameter.numel() for parameter in model.parameters()) * torch.finfo(dtype).bits // 8)


def _check_rows(rows: Mapping[str, int], size: int) -> None:
    """Raises RequestError where an embedding has fewer rows than the tokenizer has tokens; more are padding."""
    for field, n in rows.items():
        if n < size:
            raise refusal("few_rows", field=field, rows=n, size=size)


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


def _template_difference(first: Any, second: Any) -> str | None:
    one, other = template_hash(first), template_hash(second)
    if one is None or other is None or one == other:
        return None
    texts = [render_prompt(tokenizer, PROBE) for tokenizer in (first, second)]
    if texts[0] == texts[1]:
        return f"though one user turn is written alike ({one[:8]} and {other[:8]})"
    index = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    pieces = (repr(text[index : index + 24]) for text in texts)
    return f"from character {index} of a user turn on: {' in one and '.join(pieces)} in the other"
