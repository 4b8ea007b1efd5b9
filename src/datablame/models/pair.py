"""Two checkpoints that share a tokenizer: loaded, or refused in one line that says what to change."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datablame.config.schema import Models, Study
from datablame.errors import RequestError
from datablame.models.adapters import check_base, is_adapter, twin, with_adapter
from datablame.models.device import chosen_device
from datablame.models.load import load_model
from datablame.models.source import located
from datablame.models.tokenizer import agreed_tokenizer, vocabulary_of


class Pair(NamedTuple):
    """Both checkpoints in evaluation mode; ids from `vocabulary_size` on are padding rows of the embedding.

    Where after is a LoRA adapter on before, both are trees of modules over one set of weights.
    """

    tokenizer: Any
    before: Any
    after: Any
    vocabulary_size: int
    stop_ids: tuple[int, ...]


def load_pair(study: Study) -> Pair:
    """The study's pair, after its tokenizers agreed and its embeddings were seen to hold every token."""
    models = _models(study)
    tokenizer = study_tokenizer(study)
    size, device = vocabulary_of(tokenizer), chosen_device(models.device)
    before = load_model(models.before, device=device, field="models.before")
    checkpoint = located(models.after, "models.after")
    if is_adapter(checkpoint, "models.after"):
        check_base(models.before, models.after)
        after = with_adapter(twin(before), checkpoint, "models.after")
    else:
        after = load_model(models.after, device=device, field="models.after")
    for field, model in (("models.before", before), ("models.after", after)):
        check_rows(field, model.get_input_embeddings().num_embeddings, size)
    return Pair(tokenizer, before, after, size, stop_tokens(tokenizer, after))


def study_tokenizer(study: Study) -> Any:
    """The tokenizer of both checkpoints with the chat template that the study names."""
    models = _models(study)
    return agreed_tokenizer(models.before, models.after, models.chat_template)


def check_rows(field: str, rows: int, size: int) -> None:
    """Raises RequestError where an embedding has fewer rows than the tokenizer has tokens; more are padding."""
    if rows < size:
        raise RequestError(
            f"{field}: its embedding has {rows} rows for the {size} tokens of its tokenizer; "
            "use the tokenizer that the checkpoint was trained with"
        )


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


def _models(study: Study) -> Models:
    if study.models is None:
        raise RequestError("models is missing; give before and after, or an organism that brings them")
    return study.models
