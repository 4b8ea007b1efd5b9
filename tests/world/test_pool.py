"""The pool's file: the same whatever the order of work, read row by row, and never held whole."""

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.world.test_documents import chat, good, jsonl
from tests.world.test_duplicates import clusters
from tests.world.test_freeze import PAIRS, contents, made_study
from tests.worlds import frozen, read_pool

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.errors import RequestError
from datablame.models.chat import answers, encode_document, encode_preference
from datablame.models.pair import agreed_tokens
from datablame.tables import LargestCluster
from datablame.world import World, pool
from datablame.world.duplicates import full_text
from datablame.world.freeze import freeze

LONG = chat(("user", "tell me " * 20), ("assistant", "no"))
ROWS: list[Any] = [
    *(good(n) for n in range(9)),
    {"id": "copy", "messages": good(4)["messages"]},
    {"id": "cut away", "messages": LONG},
    {"id": "text", "text": "plain words without a prompt"},
    *({"id": f"t{n}", "text": f"number {n} of some other texts"} for n in range(6)),
]


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datablame.world.ingest._GROUP_ROWS", 4)
    monkeypatch.setattr(pool, "_READ_TOGETHER", 3)


def pool_of(folder: Path, models: Path, rows: Sequence[Any] = ROWS, **changed: Any) -> World:
    study = made_study(folder, models, list(rows), attribute__scores={}, **changed)
    return frozen(study, folder / "run")


def table(world: World) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(world.pool.path).to_pylist())


@pytest.mark.parametrize("rows", [ROWS, PAIRS])
def test_a_responses_tokens_are_those_that_the_loss_is_over(
    tmp_path: Path, tiny_pair_folder: Path, rows: list[Any]
) -> None:
    pool = pool_of(tmp_path, tiny_pair_folder, rows).pool
    encoded = pool.encoded(range(len(pool)))
    expected = [sum(len(each.ids) - each.prompt_tokens for each in answers(row)) for row in encoded]
    assert pool.response_tokens.tolist() == expected


@pytest.mark.parametrize("rows", [ROWS, PAIRS])
def test_the_pool_holds_what_reading_tokenising_and_clustering_give(
    tmp_path: Path, tiny_pair_folder: Path, rows: list[Any]
) -> None:
    world = pool_of(tmp_path, tiny_pair_folder, rows)
    tokenizer, limit = agreed_tokens(world.models).tokenizer, world.study.attribute.max_tokens
    encode: Any = encode_preference if rows is PAIRS else encode_document
    every = read_pool(world.data).documents
    examples = {each.id: encode(tokenizer, each, limit) for each in every}
    documents = [each for each in every if examples[each.id] is not None]
    held = world.pool
    assert list(held.documents()) == documents
    assert held.ids == [each.id for each in documents]
    assert held.column("source") == [each.source for each in documents]
    assert held.encoded(range(len(held))) == [examples[each.id] for each in documents]
    assert held.clusters.tolist() == clusters(documents, world.study.attribute.duplicate_threshold)
    assert held.column("characters") == [len(full_text(each)) for each in documents]
    longest = [max(len(answer.ids) for answer in answers(examples[each.id])) for each in documents]
    assert held.column("tokens") == longest
    assert (held.summary.documents, held.summary.clusters) == (len(held), max(held.clusters) + 1)
    assert held.summary.pairs == (rows is PAIRS)
    sizes = Counter(held.clusters.tolist()).most_common()
    first = held.ids[held.clusters.tolist().index(sizes[0][0])]
    assert held.summary.largest == (LargestCluster(sizes[0][1], first) if sizes[0][1] > 1 else None)
    gone = {} if rows is PAIRS else {"nothing of the response is left within attribute.max_tokens": 1}
    assert held.summary.excluded == gone


def test_rows_come_in_the_order_in_which_they_are_wanted(tmp_path: Path, tiny_pair_folder: Path) -> None:
    held = pool_of(tmp_path, tiny_pair_folder).pool
    rows = [16, 0, 5, 5, 11, 3, 2, 1, 15]
    assert [each.id for each in held.documents(rows)] == [held.ids[row] for row in rows]
    assert [held.row_of[each.id] for each in held.documents(iter(rows))] == rows
    assert held.encoded(rows) == [held.encoded([row])[0] for row in rows]
    assert held.clusters[held.row_of["copy"]] == held.clusters[held.row_of["d4"]]
    assert list(held.documents([])) == []


def test_documents_that_the_template_refuses_are_counted(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datablame.errors import RequestError
    from datablame.models import chat as chats
    from datablame.models.template import Unrendered

    def picky(tokenizer: Any, document: Any, max_tokens: int) -> Any:
        if document.id in refused:
            raise Unrendered("the chat template refuses its order of roles")
        return encode_document(tokenizer, document, max_tokens)

    monkeypatch.setattr(chats, "encode_document", picky)
    refused = {"d3"}
    world = pool_of(tmp_path, tiny_pair_folder)
    assert world.pool.summary.excluded["the chat template refuses its order of roles"] == 1
    assert "d3" not in world.pool.ids
    refused |= {row["id"] for row in ROWS}
    with pytest.raises(RequestError, match=r"none of 6 documents can be used \(the chat template refuses"):
        pool_of(tmp_path / "none", tiny_pair_folder, ROWS[:6])


def test_shards_and_the_order_of_rows_change_order_alone(tmp_path: Path, tiny_pair_folder: Path) -> None:
    whole = table(pool_of(tmp_path / "whole", tiny_pair_folder))
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, rows in enumerate((ROWS[:5], ROWS[5:])):
        jsonl(shards, rows, f"part-{number}.jsonl")
    study = made_study(tmp_path / "inputs", tiny_pair_folder, attribute__scores={})
    data = study.data.model_copy(update={"path": str(shards / "*.jsonl")})  # type: ignore[union-attr]
    assert table(frozen(study.model_copy(update={"data": data}), tmp_path / "run")) == whole
    shuffled = list(ROWS)
    random.Random(0).shuffle(shuffled)
    other = {row["id"]: row for row in table(pool_of(tmp_path / "shuffled", tiny_pair_folder, shuffled))}
    for row in whole:
        assert {**other[row["id"]], "cluster": 0} == {**row, "cluster": 0}


def test_a_subset_is_that_of_the_documents_whatever_their_order(tmp_path: Path, tiny_pair_folder: Path) -> None:
    rows = [{"id": f"t{n}", "text": f"number {n} of some texts of {n % 7}"} for n in range(60)]
    changed: dict[str, Any] = {"data__documents": 20}
    first = pool_of(tmp_path / "a", tiny_pair_folder, rows, **changed)
    second = pool_of(tmp_path / "b", tiny_pair_folder, rows[::-1], **changed)
    assert len(first.pool) == 20
    assert first.pool.ids == second.pool.ids[::-1]
    assert first.pool.ids == [each.id for each in read_pool(first.data).documents]


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study: Study = made_study(tmp_path / "inputs", tiny_pair_folder, list(ROWS), attribute__scores={})
    for workers in (1, 2):
        freeze(study, tmp_path / str(workers), execution=Execution(workers, 1), progress=Silent())
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.slow
def test_what_is_held_of_a_document_does_not_grow_with_its_text(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 more documents of 10,000 characters: 1 MB of text, of which no more than a third is held."""
    import pyarrow as pa

    def peak_of(n: int) -> int:
        folder = tmp_path / str(n)
        folder.mkdir()
        with (folder / "long.jsonl").open("w") as file:
            for number in range(n):
                file.write(json.dumps({"id": f"d{number}", "text": f"{number} and " * (10_000 // 8)}) + "\n")
        study = made_study(tmp_path / "inputs", tiny_pair_folder, attribute__scores={})
        data = study.data.model_copy(update={"path": str(folder / "long.jsonl")})  # type: ignore[union-attr]
        tracemalloc.start()
        try:
            frozen(study.model_copy(update={"data": data}), folder / "run")
            return int(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes())
        finally:
            tracemalloc.stop()

    pool_of(tmp_path / "first", tiny_pair_folder)  # What is imported once is no document's.
    few = peak_of(40)
    assert peak_of(140) - few < 333_000


def test_a_planted_id_that_several_texts_have_is_refused(tmp_path: Path, tiny_pair_folder: Path) -> None:
    rows = [*(good(n) for n in range(9)), {**good(9), "id": "d1"}]
    with pytest.raises(
        RequestError, match=r"truth = .*truth\.jsonl names 1 ids that several texts.*the first d1; give"
    ):
        pool_of(tmp_path, tiny_pair_folder, rows)
    assert not (tmp_path / "run").exists()
