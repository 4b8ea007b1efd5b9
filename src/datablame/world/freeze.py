"""Phase zero: resolve and check a study once, and write down everything that its run rests on.

A run that is resumed keeps what was decided when it began (device, threads, judge, commits) while the study's own keys
behind it are the same; what needs a tokenizer is looked at again only where models, prompts or settings have changed.
"""

from pathlib import Path

from datablame import __version__
from datablame.config.schema import Data, Study
from datablame.engine.execute import Execution, Progress
from datablame.engine.files import read_jsonl, write_atomic, write_json
from datablame.engine.machine import cards
from datablame.errors import RequestError
from datablame.judge.choice import confirm, decide, has_key, record
from datablame.tables import Prompt, encoded, path_of
from datablame.world.checks import check_count, check_kind, check_lengths, check_scored
from datablame.world.identity import data_identity, files_identity, models_identity
from datablame.world.ingest import Draft, write_pool
from datablame.world.pool import Pool
from datablame.world.prompts import prompts_of
from datablame.world.resolve import Content, models_before, resolve
from datablame.world.sources import Source, open_source
from datablame.world.world import FILE, FORMAT, World, frozen_content

_AT_ONCE_BYTES = 32 << 20
"""Local files up to this size are tokenised in seconds, before the scan; others, and the hub's, before attribution."""


def freeze(study: Study, root: Path, *, execution: Execution, progress: Progress) -> World:
    """The world of a study whose organism, if it had one, is resolved; written to `artifacts/world`.

    A pool that is large or at the hub is only looked at, and frozen by `ensure_pool`.

    Raises:
        RequestError: one line about the first thing that cannot be treated rightly; nothing is written.
    """
    assert study.data is not None
    before = frozen_content(root)
    threads = before["decided"]["threads"] if before is not None else execution.threads
    execution = execution._replace(threads=threads)
    judge = decide(study, _judge_before(before), has_key())
    confirm(study, judge, _judge_before(before), has_key())
    truth, files = _truth(study), files_identity(study)
    resolved, identity = resolve(study, before, execution, progress)
    source, data = _source(study, before)
    settings = {"layers": resolved.layers, "activation_layer": resolved.activation_layer}
    final = study.model_copy(
        update={
            "models": resolved.models,
            "data": data,
            "prefilter": study.prefilter.on(resolved.models.device),
            "attribute": study.attribute.model_copy(update=settings),
        }
    )
    world = World(
        root=root,
        study=final,
        models=resolved.models,
        data=data,
        prompts=prompts_of(study),
        truth=truth,
        judge=judge,
        identities={"models": identity, "data": data_identity(data), "files": files},
        threads=threads,
        contexts=resolved.contexts,
    )
    if world.pool_is_frozen:
        _check_pool(world, Draft(world.pool.summary, int(world.pool.tokens.max())), world.pool.path)
    else:
        source = source or open_source(data)
        if source.n_rows is not None:
            check_count(final, source.n_rows if data.documents is None else min(source.n_rows, data.documents))
        if source.size_bytes is not None and source.size_bytes <= _AT_ONCE_BYTES:
            _freeze_pool(world, source, execution, progress)
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
        _freeze_pool(world, open_source(world.data), execution, progress)


def preview(study: Study, root: Path) -> World:
    """What `freeze` would give as far as it is known without a model, the pool or the network; nothing is written.

    Layers that the study does not name stay open, a commit that is not known here is None, and there is no pool.

    Raises:
        RequestError: the study's truth cannot be read, or another version wrote the run folder.
    """
    assert study.data is not None
    before = frozen_content(root)
    models, data = models_before(study, before), _data_before(study, before) or study.data
    if models.device == "auto":
        models = models.model_copy(update={"device": "cuda" if cards() else "cpu"})
    update = {"models": models, "data": data, "prefilter": study.prefilter.on(models.device)}
    identities = {
        "models": models_identity(models, models),
        "data": data_identity(data),
        "files": files_identity(study),
    }
    return World(
        root=root,
        study=study.model_copy(update=update),
        models=models,
        data=data,
        prompts=prompts_of(study),
        truth=_truth(study),
        judge=decide(study, _judge_before(before), has_key()),
        identities=identities,
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


def _judge_before(before: Content | None) -> Content | None:
    return None if before is None else before["decided"]["judge"]


def _data_before(study: Study, before: Content | None) -> Data | None:
    """The data at the commit that the run began with; None where the study now names other data."""
    assert study.data is not None
    same = before is not None and before["asked"]["data"] == study.data.model_dump(mode="json")
    return Data.model_validate(before["study"]["data"]) if before is not None and same else None


def _source(study: Study, before: Content | None) -> tuple[Source | None, Data]:
    """The data with a commit for a branch or tag, and its rows where that had to be looked up."""
    assert study.data is not None
    data = _data_before(study, before)
    if data is not None:
        return None, data
    source = open_source(study.data)
    return source, study.data if source.commit is None else study.data.model_copy(update={"revision": source.commit})


def _freeze_pool(world: World, source: Source, execution: Execution, progress: Progress) -> None:
    write_pool(
        source,
        world.study,
        world.root,
        world.pool_key,
        execution=execution,
        progress=progress,
        check=lambda draft, path: _check_pool(world, draft, path),
    )


def _check_pool(world: World, draft: Draft, path: Path) -> None:
    """Refuse what the study asks of the pool and the pool does not give."""
    check_kind(world.study, [draft.summary.pairs])
    check_count(world.study, draft.summary.documents, draft.summary.clusters)
    check_lengths(world.study, draft.longest_tokens, world.contexts)
    check_scored(world.study, lambda: Pool(path).ids)


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
