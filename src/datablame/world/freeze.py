"""Phase zero: resolve and check a study once, and write down everything that its run rests on."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datablame.engine.execute import Execution, Progress
from datablame.engine.run_folder import digest, hash_file, read_json, read_jsonl, write_atomic, write_json
from datablame.errors import RequestError
from datablame.judge.choice import freeze as freeze_judge
from datablame.study.schema import Study
from datablame.tables import Document, PoolSummary, Prompt, SkippedRows, encoded, path_of
from datablame.world.documents import read_pool
from datablame.world.duplicates import clusters, full_text
from datablame.world.kinds import check_kind
from datablame.world.prompts import harmless_prompts
from datablame.world.rows import pool_files
from datablame.world.world import World

_TRUNCATED = "nothing of the response is left within attribute.max_tokens"
_REFUSED = "the chat template refuses its order of roles"
_GROUP_ROWS = 512


def freeze(study: Study, root: Path, *, execution: Execution, progress: Progress) -> World:
    """The world of a study whose organism, if it had one, is resolved; written to `artifacts/world`.

    Raises:
        RequestError: one line about the first thing that cannot be treated rightly.
    """
    from datablame.models.preflight import preflight

    assert study.models is not None
    assert study.data is not None
    assert study.prompts is not None
    checked = preflight(study, workers=execution.workers)
    pinned = checked.study.models
    assert pinned is not None
    study = checked.study.model_copy(update={"prefilter": study.prefilter.on(pinned.device)})
    assert study.data is not None
    paths = {
        "judge.rules": study.judge.rules,
        "truth": study.truth,
        **{f"attribute.scores.{name}": path for name, path in study.attribute.scores.items()},
    }
    files = {name: hash_file(Path(path)) for name, path in paths.items() if path and Path(path).is_file()}
    folder = Path(study.data.path).expanduser()
    contents = {
        str(file.relative_to(folder)) if folder.is_dir() else file.name: hash_file(file)
        for file in pool_files(study.data.path)
    }
    data = {"data": study.data.model_dump(mode="json", exclude={"streaming", "path"}), "files": contents}
    world = World(
        root=root,
        study=study,
        models=pinned,
        data=study.data,
        prompts=_prompts(study),
        truth=_truth(study),
        judge=freeze_judge(study, root),
        identities={"models": checked.identity, "data": data, "files": files},
    )
    write_atomic(path_of(Prompt, root), encoded(Prompt, world.prompts))
    _freeze_pool(world, progress)
    return world


def _prompts(study: Study) -> tuple[Prompt, ...]:
    assert study.prompts is not None
    splits: Mapping[Any, Any] = {"attribution": study.prompts.attribution, "held-out": study.prompts.held_out}
    rows = [Prompt(each.id, each.behaviour, split, each.text) for split, own in splits.items() for each in own]
    return (*rows, *harmless_prompts(study))


def _truth(study: Study) -> dict[str, frozenset[str]] | None:
    if study.truth is None:
        return None
    planted: dict[str, set[str]] = {}
    try:
        for row in read_jsonl(Path(study.truth)):
            planted.setdefault(row["behaviour"], set()).add(row["doc_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"truth = {study.truth} cannot be read as JSONL of doc_id and behaviour ({type(error).__name__}); mend it"
        ) from None
    return {behaviour: frozenset(ids) for behaviour, ids in planted.items()}


def _freeze_pool(world: World, progress: Progress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datablame.models.chat import answers, encode_document, encode_preference
    from datablame.models.pair import study_tokenizer
    from datablame.tables import schema_of

    key = digest([world.part("pool"), world.identities["models"]["chat_template_sha256"]])
    path, marker = path_of(Document, world.root), path_of(Document, world.root).with_name("pool.key.json")
    if path.exists() and marker.exists() and read_json(marker) == key:
        return
    pool = read_pool(world.data, world.seed, progress)
    check_kind(pool.documents, world.study)
    tokenizer, settings = study_tokenizer(world.study), world.study.attribute
    kept, tokens, excluded = [], [], Counter[str]()
    progress.start("world: tokenising the pool", len(pool.documents))
    for document in pool.documents:
        try:
            encode: Any = encode_preference if document.rejected else encode_document
            found = encode(tokenizer, document, settings.max_tokens)
        except RequestError:
            excluded[_REFUSED] += 1
        else:
            if found is None:
                excluded[_TRUNCATED] += 1
            else:
                kept.append(document)
                tokens.append(answers(found))
        progress.advance()
    if not kept:
        raise RequestError(
            f"attribute.max_tokens = {settings.max_tokens} cuts away the response of every document; raise it"
            if excluded[_TRUNCATED]
            else f"data: of all {len(pool.documents)} documents, {_REFUSED}; mend the data"
        )
    numbers = clusters(kept, settings.duplicate_threshold)
    rows = pa.Table.from_pylist(
        [
            {
                "id": d.id,
                "source": d.source,
                "prompt": [{"role": turn.role, "content": turn.content} for turn in d.prompt],
                "response": d.response,
                "rejected": d.rejected,
            }
            for d in kept
        ],
        schema=schema_of(Document),
    )
    extra = {
        "characters": pa.array([len(full_text(d)) for d in kept], pa.int64()),
        "tokens": pa.array([max(len(each.ids) for each in own) for own in tokens], pa.int64()),
        "cluster": pa.array(numbers, pa.int64()),
        "prompt_tokens": pa.array([own[0].prompt_tokens for own in tokens], pa.int64()),
        "token_ids": pa.array([own[0].ids for own in tokens], pa.list_(pa.int32())),
        "rejected_ids": pa.array([own[1].ids if len(own) > 1 else None for own in tokens], pa.list_(pa.int32())),
    }
    for name, column in extra.items():
        rows = rows.append_column(name, column)
    part = path.with_name(path.name + ".part")
    pq.write_table(rows, part, compression="zstd", row_group_size=_GROUP_ROWS)
    part.replace(path)
    summary = PoolSummary(
        documents=len(kept),
        clusters=len(set(numbers)),
        pairs=bool(kept[0].rejected),
        excluded=dict(excluded),
        skipped=tuple(SkippedRows(why, n, pool.examples.get(why)) for why, n in pool.skipped.items()),
        commit=pool.commit,
    )
    write_atomic(path_of(PoolSummary, world.root), encoded(PoolSummary, summary))
    write_json(marker, key)
