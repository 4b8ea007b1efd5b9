"""Two checkpoints that share a tokenizer: loaded, or refused in one line that says what to change."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datablame.config import ModelRef, Study
from datablame.errors import RequestError
from datablame.models.chat import encode_prompt, render_prompt

__all__ = [
    "Pair",
    "check_context",
    "check_pair",
    "load_model",
    "load_models",
    "load_pair",
    "load_tokenizer",
    "stop_tokens",
    "vocabulary_of",
]

PROBE = "Hello, what's 12 + 345?\n\tNaïve café: 東京 <b>x</b>  y"


class Pair(NamedTuple):
    """Both checkpoints in evaluation mode; ids from `vocabulary_size` on are padding rows of the embedding."""

    tokenizer: Any
    before: Any
    after: Any
    vocabulary_size: int
    stop_ids: tuple[int, ...]


def load_pair(study: Study, *, device: str = "cpu") -> Pair:
    """The study's pair, after its tokenizers agreed and its longest prompt was seen to fit both contexts."""
    if study.models is None:
        raise RequestError("models is missing; give before and after, or an organism that brings them")
    pair = load_models(before=study.models.before, after=study.models.after, device=device)
    if study.prompts is not None:
        prompts = (*study.prompts.attribution, *study.prompts.held_out)
        lengths = [(prompt.id, len(encode_prompt(pair.tokenizer, prompt.text))) for prompt in prompts]
        check_context(pair, lengths, study.surface.max_new_tokens)
    return pair


def load_models(*, before: ModelRef, after: ModelRef, device: str = "cpu") -> Pair:
    """Both checkpoints, after `check_pair`."""
    tokenizer = _agreed_tokenizer(before, after)
    loaded = {
        field: load_model(reference, device=device, field=field)
        for field, reference in (("models.before", before), ("models.after", after))
    }
    size = vocabulary_of(tokenizer)
    for field, model in loaded.items():
        rows = model.get_input_embeddings().num_embeddings
        if rows < size:
            raise RequestError(
                f"{field}: its embedding has {rows} rows for the {size} tokens of its tokenizer; "
                "use the tokenizer that the checkpoint was trained with"
            )
    model = loaded["models.after"]
    return Pair(tokenizer, loaded["models.before"], model, size, stop_tokens(tokenizer, model))


def load_tokenizer(reference: ModelRef, *, field: str = "models.after") -> Any:
    """The checkpoint's own tokenizer."""
    from transformers import AutoTokenizer

    _quiet()
    _exists(reference, field)
    try:
        return AutoTokenizer.from_pretrained(reference.path, revision=reference.revision)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(reference, field, "a tokenizer", error) from error


def load_model(
    reference: ModelRef, *, device: str = "cpu", dtype: torch.dtype | None = None, field: str = "models.after"
) -> Any:
    """The checkpoint in evaluation mode without gradients; a folder with a LoRA adapter is merged into its base.

    Raises RequestError for a folder that is not there or holds no checkpoint, and for weights that the
    checkpoint lacks, which transformers would initialise at random.
    """
    from transformers import AutoModelForCausalLM

    _quiet()
    folder = _exists(reference, field)
    if (folder / "adapter_config.json").is_file():
        return _merged_adapter(reference, folder, device=device, dtype=dtype, field=field)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            reference.path,
            revision=reference.revision,
            dtype=dtype or reference.dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unloadable(reference, field, "a causal language model in safetensors", error) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise RequestError(
            f"{field} = {reference.path} lacks {len(missing)} weights, the first is {missing[0]}; "
            "save the checkpoint again without adapters (merge or unload them first)"
        )
    return model.to(device).eval().requires_grad_(False)


def check_pair(before: ModelRef, after: ModelRef) -> None:
    """Raises RequestError with the first difference between the checkpoints' tokenizers.

    Compared are the map from tokens to ids, the special tokens (not the padding token, which is always masked),
    the rendered chat template and the ids of a probe; a `before` without a template is not held against it.
    """
    _agreed_tokenizer(before, after)


def check_context(pair: Pair, lengths: Sequence[tuple[str, int]], max_new_tokens: int) -> None:
    """Raises RequestError where a prompt (id, tokens) and its output do not fit a checkpoint's context."""
    if not lengths:
        return
    longest, tokens = max(lengths, key=lambda length: length[1])
    for field, model in (("models.before", pair.before), ("models.after", pair.after)):
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None and tokens + max_new_tokens > context:
            raise RequestError(
                f"surface.max_new_tokens = {max_new_tokens} and the {tokens} tokens of prompt {longest} are more than "
                f"the context of {context} tokens of {field}; lower it or shorten the prompt"
            )


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def stop_tokens(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """The ids that end an output: the tokenizer's EOS and those of the model's generation settings."""
    settings = getattr(model, "generation_config", None)
    configured = getattr(settings, "eos_token_id", None)
    every = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return tuple(sorted({int(token) for token in every if token is not None}))


def _agreed_tokenizer(before: ModelRef, after: ModelRef) -> Any:
    ours = load_tokenizer(before, field="models.before")
    theirs = load_tokenizer(after, field="models.after")
    difference = _first_difference(ours, theirs)
    if difference:
        raise RequestError(f"models.before and models.after: {difference}; use checkpoints with one tokenizer")
    return theirs


def _first_difference(ours: Any, theirs: Any) -> str | None:
    mine, other = ({token: text for text, token in tokenizer.get_vocab().items()} for tokenizer in (ours, theirs))
    for token in sorted(mine.keys() | other.keys()):
        if mine.get(token) != other.get(token):
            return f"token id {token} is {_named(mine, token)} in one and {_named(other, token)} in the other"
    for name in ("bos_token", "eos_token"):
        if getattr(ours, name) != getattr(theirs, name):
            return f"{name} is {getattr(ours, name)!r} in one and {getattr(theirs, name)!r} in the other"
    special = (set(ours.all_special_tokens) ^ set(theirs.all_special_tokens)) - {ours.pad_token, theirs.pad_token}
    if special:
        return f"{min(special)!r} is a special token in one and not in the other"
    if ours.chat_template and theirs.chat_template:
        rendered, wanted = render_prompt(ours, PROBE), render_prompt(theirs, PROBE)
        if rendered != wanted:
            place = next(
                (i for i, (a, b) in enumerate(zip(rendered, wanted, strict=False)) if a != b),
                min(len(rendered), len(wanted)),
            )
            shown = (repr(text[place : place + 24]) for text in (rendered, wanted))
            return f"the chat templates differ from character {place} on: {' in one and '.join(shown)} in the other"
    encoded, expected = (tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (ours, theirs))
    if encoded != expected:
        return f"{PROBE!r} is cut into {len(encoded)} tokens by one and into {len(expected)} by the other"
    return None


def _named(tokens: dict[int, str], token: int) -> str:
    return repr(tokens[token]) if token in tokens else "unused"


def _merged_adapter(reference: ModelRef, folder: Path, *, device: str, dtype: torch.dtype | None, field: str) -> Any:
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise RequestError(f"{field} = {reference.path} names no base model; write it into adapter_config.json")
    model = load_model(
        reference.model_copy(update={"path": str(base), "revision": None}), device=device, dtype=dtype, field=field
    )
    with warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return merged.eval().requires_grad_(False)


def _exists(reference: ModelRef, field: str) -> Path:
    folder = Path(reference.path).expanduser()
    looks_local = reference.path.startswith((".", "/", "~")) or reference.path.count("/") > 1
    if looks_local and not folder.is_dir():
        raise RequestError(f"{field} = {reference.path} is not a folder; give a checkpoint's folder or a hub id")
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise RequestError(f"{field} = {reference.path} has no config.json; give a folder that save_pretrained wrote")
    return folder


def _unloadable(reference: ModelRef, field: str, what: str, error: Exception) -> RequestError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    where = "" if Path(reference.path).is_dir() else " that this machine can reach"
    return RequestError(
        f"{field} = {reference.path} cannot be loaded as {what} ({reason[:200]}); "
        f"give a checkpoint's folder or a hub id{where}"
    )


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
