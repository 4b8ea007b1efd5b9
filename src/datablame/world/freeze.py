"""Phase zero: resolve and check a study once, and write down everything that its run rests on.

A run that is resumed keeps what was decided when it began (device, threads, judge, commits) while the study's own keys
behind it are the same; what needs a tokenizer is looked at again only where models, prompts or settings have changed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datablame import __version__
from datablame.config.schema import Data, Models, Study
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.files import read_jsonl, write_atomic, write_json
from datablame.engine.machine import cards
from datablame.errors import RequestError
from datablame.judge.choice import confirm, decide, has_key, record
from datablame.tables import Prompt, encoded, path_of
from datablame.world.checks import check_count, check_pool
from datablame.world.identity import data_identity, files_identity, models_identity
from datablame.world.ingest import write_pool
from datablame.world.sources import open_source
from datablame.world.world import FILE, FORMAT, World, frozen_content, prompts_of

_AT_ONCE_BYTES = 32 << 20
"""Local files up to this size are tokenised in seconds, before the scan; others, and the hub's, before attribution."""

Content = Mapping[str, Any]
"""What world.json says; empty where there is none."""


class Resolved(NamedTuple):
    """What only configurations and tokenizers tell of a study's models."""

    models: Models
    layers: dict[str, Any]
    """The keys `layers` and `activation_layer` of `attribute`."""
    contexts: dict[str, int]
    identity: dict[str, Any]
    """The models' identity, with the hash of the chat template."""


def freeze(study: Study, root: Path, *, execution: Execution, progress: Progress) -> World:
    """The world of a study whose organism, if it had one, is resolved; written to `artifacts/world`.

    A pool that is large or at the hub is only looked at, and frozen by `ensure_pool`.

    Raises:
        RequestError: one line about the first thing that cannot be treated rightly; nothing is written.
    """
    assert study.data is not None
    before: Content = frozen_content(root) or {}
    decided = before.get("decided", {})
    execution = execution._replace(threads=decided.get("threads", execution.threads))
    judge = decide(study, decided.get("judge"), has_key())
    confirm(study, judge, decided.get("judge"), has_key())
    truth, files = _truth(study), files_identity(study)
    resolved = _resolve(study, before, execution, progress)
    source, data = None, _data_before(study, before)
    if data is None:
        source = open_source(study.data)
        data = study.data if source.commit is None else study.data.model_copy(update={"revision": source.commit})
    update = {
        "models": resolved.models,
        "data": data,
        "prefilter": study.prefilter.on(resolved.models.device),
        "attribute": study.attribute.model_copy(update=resolved.layers),
    }
    world = World(
        root=root,
        study=study.model_copy(update=update),
        prompts=prompts_of(study),
        truth=truth,
        judge=judge,
        identities={"models": resolved.identity, "data": data_identity(data), "files": files},
        threads=execution.threads,
        contexts=resolved.contexts,
    )
    if world.pool_is_frozen:
        check_pool(world, world.pool.summary, world.pool)
    else:
        source = source or open_source(data)
        if source.n_rows is not None:
            check_count(world.study, min(source.n_rows, data.documents or source.n_rows))
        if source.size_bytes is not None and source.size_bytes <= _AT_ONCE_BYTES:
            write_pool(world, source, execution=execution, progress=progress)
        elif source.size_bytes is not None:
            next(source.rows, None)  # A file that cannot be read, or lacks a column, is refused here.
    _write(world, study)
    return world


def ensure_pool(world: World, *, execution: Execution, progress: Progress) -> None:
    """Freeze the pool where that has not been done; phases that read it come after this.

    Raises:
        RequestError: the data cannot be read, or the study cannot use it.
    """
    if not world.pool_is_frozen:
        execution = execution._replace(threads=world.threads)
        write_pool(world, open_source(world.data), execution=execution, progress=progress)


def preview(study: Study, root: Path) -> World:
    """What `freeze` would give as far as it is known without a model, the pool or the network; nothing is written.

    Layers that the study does not name stay open, a commit that is not known here is None, and there is no pool.

    Raises:
        RequestError: the study's truth cannot be read, or another version wrote the run folder.
    """
    assert study.data is not None
    before: Content = frozen_content(root) or {}
    models, data = _models_before(study, before), _data_before(study, before) or study.data
    if models.device == "auto":
        models = models.model_copy(update={"device": "cuda" if cards() else "cpu"})
    update = {"models": models, "data": data, "prefilter": study.prefilter.on(models.device)}
    return World(
        root=root,
        study=study.model_copy(update=update),
        prompts=prompts_of(study),
        truth=_truth(study),
        judge=decide(study, before.get("decided", {}).get("judge"), has_key()),
        identities={
            "models": models_identity(models, models),
            "data": data_identity(data),
            "files": files_identity(study),
        },
    )


def _truth(study: Study) -> dict[str, frozenset[str]] | None:
    if study.truth is None:
        return None
    planted: dict[str, set[str]] = {}
    try:
        for row in read_jsonl(Path(study.truth).expanduser()):
            planted.setdefault(row["behaviour"], set()).add(row["doc_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"truth = {study.truth} cannot be read as JSONL of doc_id and behaviour ({type(error).__name__}); mend it"
        ) from None
    return {behaviour: frozenset(ids) for behaviour, ids in planted.items()}


def _data_before(study: Study, before: Content) -> Data | None:
    """The data at the commit that the run began with; None where the study now names other data."""
    assert study.data is not None
    same = before and before["asked"]["data"] == study.data.model_dump(mode="json")
    return Data.model_validate(before["study"]["data"]) if same else None


def _models_before(study: Study, before: Content) -> Models:
    """The study's models with what was decided about them when the run began, while the keys behind it are the same."""
    assert study.models is not None
    if not before:
        return study.models
    written, final = before["asked"]["models"], Models.model_validate(before["study"]["models"])
    values = study.models.model_dump(mode="json")
    same = [name for name in ("before", "after", "device") if written[name] == values[name]]
    return study.models.model_copy(update={name: getattr(final, name) for name in same})


def _resolve(study: Study, before: Content, execution: Execution, progress: Progress) -> Resolved:
    """What the models are: as it was when the run began, where nothing that is looked at has changed."""
    assert study.models is not None
    models = _models_before(study, before)
    if before and _checked_keys(before["asked"]) == _checked_keys(study.model_dump(mode="json")):
        decided, identity = before["decided"], before["identities"]["models"]
        template = identity["chat_template_sha256"]
        if {**models_identity(models, study.models), "chat_template_sha256": template} == identity:
            layers = {"layers": tuple(decided["layers"]), "activation_layer": decided["activation_layer"]}
            return Resolved(models, layers, decided["contexts"], identity)
    looked: dict[str, Resolved] = {}
    run_items(
        dict,
        _look,
        {"models": (study, models, execution.workers)},
        execution=execution,
        done=looked.__setitem__,
        progress=progress,
        description="world: checking the models",
    )
    return looked["models"]


def _checked_keys(values: Content) -> dict[str, Any]:
    """The study's keys that the checks of models and prompts look at."""
    attribute = {key: values["attribute"][key] for key in ("checkpoint", "layers", "activation_layer")}
    context = values["surface"]["max_new_tokens"]
    return {"models": values["models"], "prompts": values["prompts"], "attribute": attribute, "max_new_tokens": context}


def _look(_: object, item: tuple[Study, Models, int]) -> Resolved:
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
    models = checked.models.model_copy(update=update)
    n = int(checked.configs[f"models.{settings.checkpoint}"].get_text_config().num_hidden_layers)
    layers = tuple(middle_blocks(n)) if settings.layers is None else settings.layers
    layer = activation_layer(n) if settings.activation_layer is None else settings.activation_layer
    limits = {field: getattr(config, "max_position_embeddings", None) for field, config in checked.configs.items()}
    return Resolved(
        models=models,
        layers={"layers": layers, "activation_layer": layer},
        contexts={field: limit for field, limit in limits.items() if limit is not None},
        identity={**models_identity(models, written), "chat_template_sha256": template_hash(checked.tokenizer)},
    )


def _write(world: World, study: Study) -> None:
    """Write prompts.parquet and world.json, where they say something new."""
    values = world.study.model_dump(mode="json", by_alias=True)
    content = {
        "format": FORMAT,
        "datablame": __version__,
        "asked": study.model_dump(mode="json", by_alias=True),
        "study": values,
        "decided": {
            "device": world.models.device,
            "threads": world.threads,
            "layers": values["attribute"]["layers"],
            "activation_layer": values["attribute"]["activation_layer"],
            "prefilter": world.study.prefilter.method,
            "judge": record(study, world.judge),
            "contexts": world.contexts,
        },
        "identities": world.identities,
        "truth": None if world.truth is None else {key: sorted(ids) for key, ids in world.truth.items()},
    }
    path, prompts = path_of(Prompt, world.root), encoded(Prompt, world.prompts)
    if not path.exists() or path.read_bytes() != prompts:
        write_atomic(path, prompts)
    if content != frozen_content(world.root):
        write_json(world.root / FILE, content)
