"""What only configurations and tokenizers tell of a study's models; looked at again only where something changed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from datablame.config.schema import Models, Study
from datablame.engine.execute import Execution, Progress, run_items
from datablame.world.identity import models_identity
from datablame.world.prompts import prompts_of

Content = Mapping[str, Any]
"""What world.json says."""


class Resolved(NamedTuple):
    """What only configurations and tokenizers tell."""

    models: Models
    layers: tuple[int, ...]
    activation_layer: int
    contexts: dict[str, int]
    template: dict[str, str | None]
    """The hash of the chat template, for the identity."""


def models_before(study: Study, before: Content | None) -> Models:
    """The study's models with what was decided about them when the run began, while the keys behind it are the same."""
    assert study.models is not None
    if before is None:
        return study.models
    written, final = before["asked"]["models"], Models.model_validate(before["study"]["models"])
    values = study.models.model_dump(mode="json")
    same = [name for name in ("before", "after", "device") if written[name] == values[name]]
    return study.models.model_copy(update={name: getattr(final, name) for name in same})


def _checked_keys(values: Content) -> dict[str, Any]:
    """The study's keys that the checks of models and prompts look at."""
    attribute = {key: values["attribute"][key] for key in ("checkpoint", "layers", "activation_layer")}
    context = values["surface"]["max_new_tokens"]
    return {"models": values["models"], "prompts": values["prompts"], "attribute": attribute, "max_new_tokens": context}


def resolve(
    study: Study, before: Content | None, execution: Execution, progress: Progress
) -> tuple[Resolved, dict[str, Any]]:
    """Models, layers and contexts, and the models' identity: those of the run's beginning where nothing has changed."""
    assert study.models is not None
    models = models_before(study, before)
    if before is not None and _checked_keys(before["asked"]) == _checked_keys(study.model_dump(mode="json")):
        decided, identity = before["decided"], before["identities"]["models"]
        template = {"chat_template_sha256": identity["chat_template_sha256"]}
        if {**models_identity(models, study.models), **template} == identity:
            layers = tuple(decided["layers"])
            return Resolved(models, layers, decided["activation_layer"], decided["contexts"], template), identity
    results: list[Resolved] = []
    run_items(
        _nothing,
        _look,
        {"models": (study, models, execution.workers)},
        execution=execution,
        done=lambda _, resolved: results.append(resolved),
        progress=progress,
        description="world: checking the models",
    )
    [resolved] = results
    return resolved, {**models_identity(resolved.models, study.models), **resolved.template}


def _nothing() -> None:
    """No state."""


def _look(_: None, item: tuple[Study, Models, int]) -> Resolved:
    """Refuse what cannot work before any weights are loaded, and resolve what configurations tell; runs in a worker."""
    from datablame.models.blocks import activation_layer, middle_blocks
    from datablame.models.chat import encode_prompt
    from datablame.models.device import weights_dtype
    from datablame.models.pair import check_context, preflight, template_hash

    study, models, workers = item
    written, settings = study.models, study.attribute
    assert written is not None
    revisions = {name: getattr(models, name).revision for name in ("before", "after")}
    commits = {name: each for name, each in revisions.items() if each not in (None, getattr(written, name).revision)}
    checked = preflight(written.model_copy(update={"device": models.device}), workers=workers, commits=commits)
    lengths = [(prompt.id, len(encode_prompt(checked.tokenizer, prompt.text))) for prompt in prompts_of(study)]
    check_context(checked.configs, lengths, study.surface.max_new_tokens)
    update = {}
    for name in ("before", "after"):
        reference, config = getattr(checked.models, name), checked.configs[f"models.{name}"]
        dtype = weights_dtype(reference.dtype, getattr(config, "dtype", None), checked.models.device)
        update[name] = reference.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    n = int(checked.configs[f"models.{settings.checkpoint}"].get_text_config().num_hidden_layers)
    limits = {field: getattr(config, "max_position_embeddings", None) for field, config in checked.configs.items()}
    return Resolved(
        models=checked.models.model_copy(update=update),
        layers=tuple(middle_blocks(n)) if settings.layers is None else settings.layers,
        activation_layer=activation_layer(n) if settings.activation_layer is None else settings.activation_layer,
        contexts={field: limit for field, limit in limits.items() if limit is not None},
        template={"chat_template_sha256": template_hash(checked.tokenizer)},
    )
