"""Two checkpoints that share a tokenizer: loaded, or refused in one line, if possible before any weights are."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datablame.config.schema import IntermediateCheckpoint, ModelRef, Models
from datablame.engine.files import digest, read_json
from datablame.models.adapters import with_adapter
from datablame.models.blocks import decoder_blocks
from datablame.models.device import chosen_device, free_bytes, weights_dtype
from datablame.models.load import (
    base_of,
    check_options,
    goes_on,
    load_config,
    load_model,
    load_tokenizer,
    template_in,
    twin,
    whole_of,
)
from datablame.models.shared_tokens import Agreed, check_alike, share
from datablame.models.source import Checkpoint, refusal
from datablame.models.template import asks_date, framed, rendered, turn_of
from datablame.models.tokenizer_file import PROBES
from datablame.tables import Message, SharedTokens

_BEFORE, _AFTER = "models.before", "models.after"


class Pair(NamedTuple):
    """Both checkpoints in evaluation mode, over one set of weights where after is a LoRA adapter on before."""

    agreed: Agreed
    before: Any
    after: Any
    stop_ids: tuple[int, ...]

    @property
    def tokenizer(self) -> Any:
        """What cuts texts for both."""
        return self.agreed.tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Ids from here on are padding rows of an embedding, or tokens of one checkpoint only."""
        return self.agreed.tokens.vocabulary_size


class Checked(NamedTuple):
    """Models that were seen to fit together."""

    models: Models
    """With commits for branches and tags, folders for GGUF files, device and types for `auto`, and today where a chat
    template asks for it: later loads get the same."""
    configs: Mapping[str, Any]
    """The architecture's settings of `models.before` and `models.after`."""
    agreed: Agreed


def load_pair(models: Models) -> Pair:
    """The pair, after its tokenizers agreed and its embeddings were seen to hold what both need."""
    named = Checkpoint(models.after, _AFTER)
    adapter = named.located()
    base = base_of(adapter)
    on_before = base is not None and goes_on(Checkpoint(models.before, _BEFORE), named, base)
    agreed, device = agreed_tokens(models), chosen_device(models.device)
    before = load_model(models.before, device=device, field=_BEFORE)
    own = None if on_before else load_model(models.after, device=device, field=_AFTER)
    after = own or with_adapter(twin(before), adapter)
    return Pair(agreed, before, after, stop_tokens(agreed.tokenizer, after, agreed.tokens))


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
    on_before = adapted is not None and goes_on(*named, adapted)
    configs, held, shells, sizes = {}, [], [], []
    for checkpoint in (before, after):
        whole = whole_of(checkpoint)
        if whole is not checkpoint and checkpoint.has_weights():
            raise checkpoint.refused("model_and_adapter")
        config = configs[checkpoint.field] = load_config(whole.reference, field=whole.field)
        whole.check_weights()
        check_options(checkpoint, config, device)
        held.append(_with_dtype(checkpoint.reference, config, device))
        shells.append(without_weights(config))
        sizes.append(weights_bytes(shells[-1], getattr(torch, held[-1].dtype)))
    _check_shapes(*named, shells)
    pinned = models.model_copy(update={"before": held[0], "after": held[1], "device": device})
    agreed = agreed_tokens(pinned)
    if pinned.date is None and asks_date(agreed.tokenizer.chat_template):
        pinned = pinned.model_copy(update={"date": date.today()})
        agreed = agreed_tokens(pinned)
    # The weights alone; batches adapt to the rest.
    processes = workers if device == "cpu" else 1
    needed, free = processes * sum(sizes[:1] if on_before else sizes), free_bytes(device)
    if needed > free:
        where, fewer = (f" in {processes} processes", "use fewer --workers, ") if processes > 1 else ("", "")
        raise refusal("weights_memory", needed=needed / 1e9, free=free / 1e9, where=where, fewer=fewer, device=device)
    return Checked(pinned, configs, agreed)


def checked_checkpoints(models: Models, config: Any) -> tuple[IntermediateCheckpoint, ...]:
    """The intermediate checkpoints, located, of before's architecture (`config`) and tokenizer; no weights are loaded.

    Raises RequestError with the first that is none.
    """
    base, found = Checkpoint(models.before, _BEFORE), []
    for number, reference in enumerate(models.checkpoints):
        named = Checkpoint(reference, f"models.checkpoints.{number}")
        whole = whole_of(checkpoint := named.located())
        own = load_config(whole.reference, field=whole.field)
        whole.check_weights()
        n_before, n_after = (each.get_text_config().num_hidden_layers for each in (config, own))
        if n_before != n_after:
            raise named.refused("other_depth", before=base.shown, n_before=n_before, n_after=n_after)
        _check_shapes(base, named, [without_weights(config), without_weights(own)])
        tokenizers = [load_tokenizer(each.reference, field=each.field) for each in (base, checkpoint)]
        check_alike(tokenizers, (_BEFORE, named.field))
        located: Any = _with_dtype(checkpoint.reference, own, models.device)
        found.append(located)
    return tuple(found)


def _with_dtype(reference: ModelRef, config: Any, device: str) -> ModelRef:
    """The reference with the type that its weights are held in, whatever `auto` stands for."""
    dtype = weights_dtype(reference.dtype, getattr(config, "dtype", None), device)
    return reference.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


def agreed_tokens(models: Models) -> Agreed:
    """The tokenizer of both checkpoints (`share`) with the chat template that the study names, and what they share.

    The template has what the study gives it in its text.

    The chat templates are compared unless `chat_template` names one or `before` has none. RequestError with the first
    difference, or where a template is not there.
    """
    first, second = load_tokenizer(models.before, field=_BEFORE), load_tokenizer(models.after, field=_AFTER)
    check_alike((first, second))
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
            second.chat_template = template_in(Path(name).expanduser())
        except (OSError, ValueError) as error:
            raise refusal("unreadable_template", name=name, error=error) from None
    if second.chat_template:
        second.chat_template = framed(second.chat_template, models.chat_template_kwargs, models.date)
    sides = (_rows_and_ends(models.before, _BEFORE), _rows_and_ends(models.after, _AFTER))
    turn_end: list[Any] = [turn_of(second).stop] if second.chat_template else []
    return share((first, second), [rows for rows, _ in sides], [sides[0][1], [*sides[1][1], *turn_end]])


def _rows_and_ends(reference: ModelRef, field: str) -> tuple[int, list[Any]]:
    """The rows of a checkpoint's embedding, and the ids that its settings name as ends of an output."""
    checkpoint = Checkpoint(reference, field).located()
    whole = whole_of(checkpoint)
    config, name = load_config(whole.reference, field=field), "generation_config.json"
    file = whole.file(name)
    try:
        ends = _ends(config if file is None else read_json(file))
    except ValueError:
        raise whole.refused("settings_file", file=name, problem="is not valid JSON") from None
    if other := [each for each in ends if not isinstance(each, int)]:
        raise whole.refused("settings_file", file=name, problem=f"has eos_token_id = {other[0]!r}, no token's id")
    return config.get_text_config().vocab_size, ends


def template_hash(tokenizer: Any) -> str | None:
    """The hash of a tokenizer's chat template, None where it has none."""
    return digest(tokenizer.chat_template) if tokenizer.chat_template else None


def check_context(contexts: Mapping[str, int], prompts: Mapping[str, int], max_new_tokens: int) -> None:
    """Raises RequestError where a prompt, of so many tokens, and its output do not fit a checkpoint's context."""
    prompt, tokens = max(prompts.items(), key=lambda item: item[1])
    for field, context in contexts.items():
        if tokens + max_new_tokens > context:
            values = {"tokens": tokens, "prompt": prompt, "context": context, "field": field}
            raise refusal("short_context", new=max_new_tokens, **values)


def stop_tokens(tokenizer: Any, model: Any, tokens: SharedTokens | None = None) -> tuple[int, ...]:
    """The ids that end an output: EOS, the end of a turn, those of the model's generation settings, those of a pair."""
    ids = [
        tokenizer.eos_token_id,
        turn_of(tokenizer).stop,
        *_ends(getattr(model, "generation_config", None)),
        *(tokens.stop_ids if tokens else ()),
    ]
    return tuple(sorted({int(token) for token in ids if token is not None}))


def _ends(settings: Any) -> list[int]:
    """What generation settings name as ends of an output."""
    ids = settings.get("eos_token_id") if isinstance(settings, dict) else getattr(settings, "eos_token_id", None)
    every = ids if isinstance(ids, list | tuple) else [ids]
    # A negative one stands for none.
    return [each for each in every if each is not None and not (isinstance(each, int) and each < 0)]


def weights_bytes(model: Any, dtype: torch.dtype) -> int:
    """What a model of that type occupies; tied weights count once."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return int(numbers * torch.finfo(dtype).bits // 8)


def without_weights(config: Any) -> Any:
    """A model of this configuration on the meta device, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


def _check_shapes(before: Checkpoint, after: Checkpoint, models: Sequence[Any]) -> None:
    """Raises RequestError where a matrix of a block has another shape in each model, or is in one of them only.

    Blocks that one of them lacks are refused by `distance.measured`, once files were held against configurations.
    """
    try:
        stacks = [decoder_blocks(model) for model in models]
    except ValueError as error:
        raise after.refused("no_blocks", reason=error) from None
    for n, blocks in enumerate(zip(*stacks, strict=False)):
        one, other = (
            {name: weight.shape for name, weight in block.named_parameters() if weight.ndim > 1} for block in blocks
        )
        if differing := [name for name in (*one, *other) if one.get(name) != other.get(name)]:
            first, second = (" x ".join(map(str, each.get(differing[0], ("absent",)))) for each in (one, other))
            raise after.refused(
                "other_shape", before=before.shown, weight=f"{n}.{differing[0]}", first=first, second=second
            )


def _template_difference(first: Any, second: Any) -> str | None:
    one, other = template_hash(first), template_hash(second)
    if one is None or other is None or one == other:
        return None
    texts = [rendered(tokenizer, [Message("user", PROBES[0])], generation=True) for tokenizer in (first, second)]
    if texts[0] == texts[1]:
        return f"though one user turn is written alike ({one[:8]} and {other[:8]})"
    index = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    pieces = (repr(text[index : index + 24]) for text in texts)
    return f"from character {index} of a user turn on: {' in one and '.join(pieces)} in the other"
