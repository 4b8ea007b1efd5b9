"""Phase zero: resolve and check a study once, and write down everything that its run rests on.

A run that is resumed keeps what was decided when it began (device, threads, judge, commits) while the study's own keys
behind it are the same; what needs a tokenizer is looked at again only where models, prompts or settings have changed.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame import __version__
from datablame.config.schema import Data, Models, Study
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.files import changes, read_jsonl, write_atomic, write_json
from datablame.engine.machine import cards
from datablame.errors import problem
from datablame.judge.choice import confirm, decide, has_key, record
from datablame.tables import ChatFormat, Distance, Prompt, SharedTokens, encoded, path_of
from datablame.world.identity import data_identity, files_identity, models_identity, trajectory
from datablame.world.ingest import look, write_pool
from datablame.world.pool import check_count, check_pool
from datablame.world.refusals import refused
from datablame.world.sources import open_source, pool_files, row_lines
from datablame.world.world import FILE, FORMAT, World, frozen_content, prompts_of, seen_of

if TYPE_CHECKING:
    from datablame.models.pair import Checked

_logger = logging.getLogger(__name__)
_AT_ONCE_BYTES = 32 << 20
"""Local files up to this size are tokenised in seconds, before the scan; others, and the hub's, before attribution."""


class Resolved(NamedTuple):
    """What a study's models tell, by configurations, tokenizers and one look at their weights."""

    models: Models
    layers: dict[str, Any]
    """The keys `layers` and `activation_layer` of `attribute`."""
    identity: dict[str, Any]
    """The models' identity, with the hash of the chat template."""
    contexts: Mapping[str, int] = {}
    """This and what follows are fields of the world; empty and None where nothing was loaded."""
    coverage: Mapping[str, float] = {}
    tokens: SharedTokens | None = None
    distance: Distance | None = None
    chat: ChatFormat | None = None


def freeze(study: Study, root: Path, *, execution: Execution, progress: Progress) -> World:
    """The world of a study whose organism, if it had one, is resolved; written to `artifacts/world`.

    A pool that is large or at the hub is only looked at, and frozen by `ensure_pool`. Raises RequestError about the
    first thing that cannot be treated rightly; then nothing is written.
    """
    before = frozen_content(root) or {}
    world, decided = _begun(study, root, before), before.get("decided", {})
    confirm(study, world.judge, decided.get("judge"), has_key())
    threads = decided.get("threads", execution.threads)
    execution = execution._replace(threads=threads)
    resolved = _resolve(study, root, world.models, before, execution, progress)
    source, data = None, world.data
    if data is study.data:  # The run, if it began, began with other data.
        source = open_source(data)
        data = data if source.commit is None else data.model_copy(update={"revision": source.commit})
    world = replace(_settled(world, resolved, data), threads=threads)
    if world.pool_is_frozen:
        check_pool(world, world.pool.summary, world.pool)
    else:
        source = source or open_source(data)
        n_rows, is_small = source.n_rows, source.size_bytes is not None and source.size_bytes <= _AT_ONCE_BYTES
        if source.size_bytes is not None and not is_small:
            look(data, world.seed)  # A file that cannot be read is refused here.
            n_rows = row_lines(pool_files(data.path)) if n_rows is None else n_rows
        if n_rows is not None:
            check_count(world.study, min(n_rows, data.documents or n_rows))
        if is_small:
            write_pool(world, source, execution=execution, progress=progress)
    _write(world, study)
    return world


def ensure_pool(world: World, *, execution: Execution, progress: Progress) -> None:
    """Freeze the pool where it is not yet; RequestError where it cannot be read, or the study cannot use it."""
    if not world.pool_is_frozen:
        execution = execution._replace(threads=world.threads)
        write_pool(world, open_source(world.data), execution=execution, progress=progress)


def check_unchanged(world: World) -> None:
    """Refuse a frozen world whose checkpoints or files are not what they were, so that phases rest on the same ones.

    Raises RequestError with the first difference. Truth and calibration are read when the run begins, and no more.
    """
    written = Study.model_validate((frozen_content(world.root) or {})["requested"]).models
    assert written is not None
    held = world.identities
    models = {name: held["models"][name] for name in ("before", "after")}
    now = {"models": models_identity(world.models, written), "files": files_identity(world.study)}
    for change in changes({"models": models, "files": held["files"]}, now):
        if change.field not in ("files.truth", "files.judge.calibration"):
            raise refused("changed input", field=change.field.removeprefix("files."))


def preview(study: Study, root: Path) -> World:
    """What `freeze` would give as far as it is known without a model, the pool or the network; nothing is written.

    Layers that the study does not name stay open, a commit that is not known here is None, and there is no pool. Raises
    RequestError where the study's truth cannot be read, or another version wrote the run folder.
    """
    world = _begun(study, root, frozen_content(root) or {})
    models = world.models
    if models.device == "auto":
        models = models.model_copy(update={"device": "cuda" if cards() else "cpu"})
    resolved = Resolved(models, {}, models_identity(models, models))
    return _settled(world, resolved, world.data)


def _begun(study: Study, root: Path, before: dict[str, Any]) -> World:
    """The world with nothing resolved but what was so when the run began, while the keys behind it are the same."""
    assert study.models is not None
    assert study.data is not None
    models, data = study.models, study.data
    if before:
        requested, held = (Study.model_validate(before[name]) for name in ("requested", "study"))
        decided = ("before", "after", "checkpoints", "device", "date")
        same = [key for key in decided if getattr(requested.models, key) == getattr(models, key)]
        models = models.model_copy(update={name: getattr(held.models, name) for name in same})
        data = held.data if held.data is not None and requested.data == data else data
    judge = decide(study, before.get("decided", {}).get("judge"), has_key())
    begun = study.model_copy(update={"models": models, "data": data})
    return World(root, begun, prompts_of(study), _truth(study), judge, {})


def _truth(study: Study) -> dict[str, frozenset[str]] | None:
    """The planted documents by behaviour; whole numbers as ids are texts, as they are in the pool."""
    if study.truth is None:
        return None
    known = [behaviour.id for behaviour in study.behaviours]
    planted = defaultdict[str, set[str]](set)
    try:
        rows = [(row["behaviour"], row["doc_id"]) for row in read_jsonl(Path(study.truth).expanduser())]
    except OSError as error:
        raise refused("no truth", study=study, why=error.strerror, folder=Path.cwd()) from None
    except (ValueError, KeyError, TypeError) as error:
        raise refused("truth", study=study, kind=type(error).__name__) from None
    for behaviour, doc_id in rows:
        if behaviour not in known:
            raise refused("truth of another", study=study, behaviour=behaviour, known=", ".join(known))
        if not isinstance(doc_id, str | int) or isinstance(doc_id, bool):
            raise refused("truth", study=study, kind=f"doc_id = {doc_id!r}")
        planted[behaviour].add(str(doc_id))
    return {behaviour: frozenset(ids) for behaviour, ids in planted.items()}


def check_layers(study: Study, blocks: Mapping[str, int]) -> None:
    """Refuse layers that a checkpoint has not; `blocks` says how many `before` and `after` have.

    Raises RequestError for `attribute.layers` and `activation_layer`, and the layers that a protocol trains.
    """
    settings, patch = study.attribute, study.patch
    layers = {
        ("attribute.layers", settings.checkpoint): settings.layers or (),
        ("patch.retrain.layers", "before"): patch.retrain.layers or (),
        ("patch.continue.layers", "after"): patch.continue_.layers or (),
    }
    for (field, name), chosen in layers.items():
        if beyond := [layer for layer in chosen if layer >= blocks[name]]:
            raise refused("no block", field=field, layers=beyond, name=name, last=blocks[name] - 1)
    layer, last = settings.activation_layer or 0, blocks[settings.checkpoint]
    if layer > last:
        raise refused("no hidden state", layer=layer, name=settings.checkpoint, last=last)


def _settled(world: World, resolved: Resolved, data: Data) -> World:
    """The begun world with its models and its data as they are, and what follows from them."""
    update = {
        "models": resolved.models,
        "data": data,
        "prefilter": world.study.prefilter.on(resolved.models.device),
        "attribute": world.study.attribute.model_copy(update=resolved.layers),
    }
    study = world.study.model_copy(update=update)
    identities = {"models": resolved.identity, "data": data_identity(data), "files": files_identity(study)}
    seen = {name: getattr(resolved, name) for name in ("contexts", "coverage", "tokens", "distance", "chat")}
    return replace(world, study=study, identities=identities, **seen)


def _resolve(
    study: Study, root: Path, begun: Models, before: dict[str, Any], execution: Execution, progress: Progress
) -> Resolved:
    """What the models are: as it was when the run began, where nothing that is looked at has changed."""
    assert study.models is not None
    looked_at = attrgetter(
        *("models", "prompts", "surface.max_new_tokens"),
        *("attribute.checkpoint", "attribute.layers", "attribute.activation_layer"),
        *("patch.protocols", "patch.retrain", "patch.continue_"),
    )
    if before and looked_at(Study.model_validate(before["requested"])) == looked_at(study):
        decided, identity = before["decided"], before["identities"]["models"]
        template = {"chat_template_sha256": identity["chat_template_sha256"]}
        files = files_identity(study.model_copy(update={"models": begun}))
        same_trajectory = trajectory(files) == trajectory(before["identities"]["files"])
        if same_trajectory and models_identity(begun, study.models) | template == identity:
            layers = {"layers": tuple(decided["layers"]), "activation_layer": decided["activation_layer"]}
            return Resolved(begun, layers, identity, **seen_of(before))
    looked: dict[str, Resolved] = {}
    run_items(
        dict,
        _look,
        {"models": (study, begun, execution.workers)},
        execution=execution,
        root=root,
        done=looked.__setitem__,
        progress=progress,
        description="world: checking the models",
    )
    for doubt in _doubts(looked["models"].distance):
        progress.note(f"warning: {doubt}")
    if (chat := looked["models"].chat) is not None:
        oddities = {
            "the chat template writes no token that ends an answer; EOS stands for it": chat.turn_end is None,
            "the chat template writes no BOS; the tokenizer's is put before each conversation": chat.bos == "tokenizer",
            f"outputs begin after {chat.extra!r}, which no document has before its answer": bool(chat.extra),
            f"answers of documents follow {chat.unprompted!r}, which no output begins after": bool(chat.unprompted),
            "the chat template leaves the generation prompt out; it is taken from a conversation": chat.request_ignored,
        }
        for sentence in (sentence for sentence, holds in oddities.items() if holds):
            _logger.warning("models: %s", sentence)
    return looked["models"]


def _doubts(distance: Distance | None) -> Iterator[str]:
    """What weakens the difference of the checkpoints, though it forbids no study."""
    assert distance is not None
    if distance.rounding > 0:
        yield problem("world", "some rounding", distance=distance)
    if distance.settings:
        yield problem("world", "other settings", settings=", ".join(distance.settings))
    for side, weights in (("before", distance.before), ("after", distance.after)):
        if weights.unread:
            yield problem("world", "unread tensors", side=side, weights=weights)


def _look(_: object, item: tuple[Study, Models, int]) -> Resolved:
    """Refuse what cannot work, if possible before any weights are loaded, and resolve the rest; runs in a worker."""
    from datablame.models.blocks import activation_layer, middle_blocks
    from datablame.models.chat import encode_prompt
    from datablame.models.distance import measured
    from datablame.models.optimizer import adam_state
    from datablame.models.pair import (
        check_context,
        checked_checkpoints,
        preflight,
        template_hash,
        without_weights,
    )
    from datablame.models.shared_tokens import check_rows
    from datablame.models.template import chat_format

    study, models, workers = item
    written, settings = study.models, study.attribute
    assert written is not None
    commits = {name: commit for name in ("before", "after") if (commit := getattr(models, name).revision) is not None}
    decided = written.model_copy(update={"device": models.device, "date": models.date})
    checked = preflight(decided, workers=workers, commits=commits)
    tokenizer = checked.agreed.tokenizer
    prompts = {prompt.id: encode_prompt(tokenizer, prompt.text) for prompt in prompts_of(study)}
    check_rows(checked.agreed, prompts)
    limits = {
        field: getattr(config.get_text_config(), "max_position_embeddings", None)
        for field, config in checked.configs.items()
    }
    contexts = {field: limit for field, limit in limits.items() if limit is not None}
    check_context(contexts, {name: len(ids) for name, ids in prompts.items()}, study.surface.max_new_tokens)
    update = {"checkpoints": checked_checkpoints(checked.models, checked.configs["models.before"])}
    if models.optimizer is not None:
        adam_state(models.optimizer, without_weights(checked.configs["models.after"]), models.after.path)
    models, chat = checked.models.model_copy(update=update), chat_format(tokenizer, checked.models.date)
    configs = {name: checked.configs[f"models.{name}"].get_text_config() for name in ("before", "after")}
    blocks = {name: int(config.num_hidden_layers) for name, config in configs.items()}
    check_layers(study, blocks)
    n = blocks[settings.checkpoint]
    layers = tuple(middle_blocks(n)) if settings.layers is None else settings.layers
    layer = activation_layer(n) if settings.activation_layer is None else settings.activation_layer
    return Resolved(
        models=models,
        layers={"layers": layers, "activation_layer": layer},
        contexts=contexts,
        coverage=_coverage(study, checked, layers),
        identity={**models_identity(models, written), "chat_template_sha256": template_hash(tokenizer)},
        tokens=checked.agreed.tokens,
        distance=measured(models, written, [p.text for p in prompts_of(study)]),
        chat=chat,
    )


def _coverage(study: Study, checked: "Checked", layers: Sequence[int]) -> dict[str, float]:
    """The share of the blocks' weights that gradients and each LoRA see, by the key that names the blocks.

    Raises RequestError where one is below `models.coverage`.
    """
    from datablame.models.pair import without_weights
    from datablame.models.products import coverage

    settings, patch, shares = study.attribute, study.patch, dict[str, float]()
    uses: dict[str, tuple[str, Sequence[int] | None]] = {"attribute.layers": (settings.checkpoint, layers)}
    for protocol in patch.protocols:
        if (training := patch.training_of(protocol)).method == "lora":
            uses[f"patch.{protocol}.layers"] = ("before" if protocol == "retrain" else "after", training.layers)
    models = {side: without_weights(checked.configs[f"models.{side}"]) for side in {side for side, _ in uses.values()}}
    for field, (side, blocks) in uses.items():
        n = models[side].config.get_text_config().num_hidden_layers
        share = shares[field] = coverage(models[side], range(n) if blocks is None else blocks)
        least = checked.models.coverage
        if share < least:
            what = type(models[side]).__name__
            values = {"share": 100 * share, "side": side, "path": getattr(checked.models, side).path}
            raise refused("coverage", field=field, what=what, least=least, **values)
    return shares


def _write(world: World, study: Study) -> None:
    """Write prompts.parquet and world.json, where they say something new."""
    values = world.study.model_dump(mode="json", by_alias=True)
    content = {
        "format": FORMAT,
        "datablame": __version__,
        "requested": study.model_dump(mode="json", by_alias=True),
        "study": values,
        "decided": {
            "device": world.models.device,
            "threads": world.threads,
            **{name: values["attribute"][name] for name in ("layers", "activation_layer")},
            "prefilter": world.study.prefilter.method,
            "judge": record(study, world.judge),
            "contexts": world.contexts,
            "coverage": world.coverage,
        },
        **{name: asdict(getattr(world, name)) for name in ("tokens", "distance", "chat")},
        "identities": world.identities,
        "truth": None if world.truth is None else {key: sorted(ids) for key, ids in world.truth.items()},
    }
    path, prompts = path_of(Prompt, world.root), encoded(Prompt, world.prompts)
    if not path.exists() or path.read_bytes() != prompts:
        write_atomic(path, prompts)
    if json.loads(json.dumps(content)) != frozen_content(world.root):
        write_json(world.root / FILE, content)
