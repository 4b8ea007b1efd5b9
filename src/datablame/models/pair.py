"""Two checkpoints that share a tokenizer: loaded, or refused in one line that says what to change."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datablame.errors import RequestError
from datablame.models.adapters import check_base, is_adapter, twin, with_adapter
from datablame.models.chat import encode_prompt
from datablame.models.device import chosen_device
from datablame.models.load import load_model
from datablame.models.source import located
from datablame.models.tokenizer import agreed_tokenizer, vocabulary_of
from datablame.study.schema import ModelRef, Study
from datablame.world.prompts import harmless_prompts


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
    """The study's pair, after its tokenizers agreed and its longest prompt was seen to fit both contexts."""
    if study.models is None:
        raise RequestError("models is missing; give before and after, or an organism that brings them")
    models = study.models
    pair = load_models(
        before=models.before, after=models.after, device=models.device, chat_template=models.chat_template
    )
    check_prompts(study, pair.tokenizer, {"models.before": pair.before.config, "models.after": pair.after.config})
    return pair


def load_models(*, before: ModelRef, after: ModelRef, device: str = "cpu", chat_template: str | None = None) -> Pair:
    """Both checkpoints, after `check_pair`."""
    tokenizer = agreed_tokenizer(before, after, chat_template)
    size = vocabulary_of(tokenizer)
    device = chosen_device(device)
    first = load_model(before, device=device, field="models.before")
    place = located(after, "models.after")
    if is_adapter(place, "models.after"):
        check_base(before, after)
        second = with_adapter(twin(first), place, "models.after")
    else:
        second = load_model(after, device=device, field="models.after")
    for field, model in (("models.before", first), ("models.after", second)):
        check_rows(field, model.get_input_embeddings().num_embeddings, size)
    return Pair(tokenizer, first, second, size, stop_tokens(tokenizer, second))


def study_tokenizer(study: Study) -> Any:
    """The tokenizer of both checkpoints with the chat template that the study names."""
    assert study.models is not None
    return agreed_tokenizer(study.models.before, study.models.after, study.models.chat_template)


def check_rows(field: str, rows: int, size: int) -> None:
    """Raises RequestError where an embedding has fewer rows than the tokenizer has tokens; more are padding."""
    if rows < size:
        raise RequestError(
            f"{field}: its embedding has {rows} rows for the {size} tokens of its tokenizer; "
            "use the tokenizer that the checkpoint was trained with"
        )


def check_prompts(study: Study, tokenizer: Any, configs: Mapping[str, Any]) -> None:
    """Raises RequestError where a prompt of the study and its output do not fit the context of a checkpoint."""
    if study.prompts is None:
        return
    texts = [(prompt.id, prompt.text) for prompt in (*study.prompts.attribution, *study.prompts.held_out)]
    texts += [(prompt.id, prompt.text) for prompt in harmless_prompts(study)]
    lengths = [(prompt_id, len(encode_prompt(tokenizer, text))) for prompt_id, text in texts]
    check_context(configs, lengths, study.surface.max_new_tokens)


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
    every = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return tuple(sorted({int(token) for token in every if token is not None}))
