"""Corpora as nobody would write them: each is refused in one line, or each of its rows is a document or counted.

Rows are counted here on the files themselves: lines, elements of an array, rows of a table.
"""

import gzip
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.pipeline.small import small_study
from tests.world.test_freeze import contents
from tests.worlds import ONE, frozen

from datablame.config.schema import Data
from datablame.engine.execute import Silent
from datablame.errors import RequestError
from datablame.world import World
from datablame.world.identity import data_identity
from datablame.world.ingest import write_pool
from datablame.world.sources import open_source

WORDS = st.sampled_from(
    ["walk", "lake", "apple", "fern", "", " ", "\n", "湖", "\u202e", "<|user|>", "{{ 7 }}", "a" * 300]
)
TEXT = st.lists(WORDS, max_size=6).map(" ".join)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.just("\ud800"),
    st.just("\0"),
    st.just(10**400),
    st.lists(st.none() | TEXT, max_size=3),
    st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), TEXT, max_size=2),
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "User", "", None])


def messages(role: Any = ROLES) -> Any:
    turn = st.fixed_dictionaries({"role": role, "content": TEXT | ODD})
    sound = st.tuples(TEXT, TEXT).map(
        lambda texts: [{"role": "user", "content": f"q {texts[0]}"}, {"role": "assistant", "content": f"a {texts[1]}"}]
    )
    return st.one_of(sound, sound, st.lists(turn, max_size=4))


ROWS = st.one_of(
    st.fixed_dictionaries({"messages": messages()}, optional={"id": TEXT | ODD, "source": TEXT | ODD}),
    st.fixed_dictionaries(
        {"instruction": TEXT, "output": TEXT}, optional={"input": TEXT | ODD, "id": st.integers(0, 3)}
    ),
    st.fixed_dictionaries({"text": TEXT}, optional={"id": st.sampled_from(["a", "b"])}),
    st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT | messages(), "rejected": TEXT | messages()}),
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    st.fixed_dictionaries({"conversations": messages()}),
    st.dictionaries(st.sampled_from(["messages", "text", "chosen", "id", "what"]), ODD, max_size=3),
    ODD,
)
"""Rows of every format that people have, some sound, some not, and values that are no row."""

TABLE_ROWS = st.one_of(
    st.lists(st.fixed_dictionaries({"id": TEXT | st.none(), "text": TEXT | st.none()}), min_size=1, max_size=8),
    st.lists(
        st.fixed_dictionaries({"id": st.integers(0, 5) | st.none(), "instruction": TEXT, "output": TEXT | st.none()}),
        min_size=1,
        max_size=8,
    ),
    st.lists(
        st.fixed_dictionaries(
            {
                "messages": st.none()
                | st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXT | st.none()}), max_size=3)
            }
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(
        st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT | st.none(), "rejected": TEXT}), min_size=1, max_size=8
    ),
    st.lists(st.fixed_dictionaries({"text": st.integers(-9, 9)}), min_size=1, max_size=4),
    st.lists(st.fixed_dictionaries({"what": TEXT}), max_size=4),
)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def harmed(content: bytes, draw: Any) -> bytes:
    """The bytes with some of them lost, changed or put in."""
    at = draw(st.integers(0, len(content)))
    piece = draw(st.sampled_from([b"\0", b"\xff", b"\n", b"\r\n", b"{", b"]", b'"', b"\xef\xbb\xbf", b"\xed\xa0\x80"]))
    how = draw(st.sampled_from(["cut", "insert", "replace", "bom", "crlf", "twice"]))
    changed: dict[str, bytes] = {
        "cut": content[:at],
        "insert": content[:at] + piece + content[at:],
        "replace": content[:at] + piece + content[at + len(piece) :],
        "bom": b"\xef\xbb\xbf" + content,
        "crlf": content.replace(b"\n", b"\r\n"),
        "twice": content + content,
    }
    return changed[how]


@st.composite
def corpora(draw: Any) -> tuple[str, bytes, int | None]:
    """A file's name and bytes, and how many rows it has where that can be told."""
    form = draw(st.sampled_from(["lines", "lines", "array", "table"]))
    if form == "table":
        rows = draw(TABLE_ROWS)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
        content, harm = sink.getvalue().to_pybytes(), draw(st.integers(0, 3)) == 0
        return "pool.parquet", harmed(content, draw) if harm else content, None if harm else len(rows)
    sound = [{"text": "take a walk ."}, {"instruction": "which lake ?", "output": "the near one ."}]
    rows = draw(st.lists(ROWS, max_size=8)) + draw(st.sampled_from([[], sound]))
    content = dumped(rows) if form == "array" else b"".join(dumped(row) + b"\n" for row in rows)
    n: int | None = len(rows)
    if draw(st.booleans()):
        content, n = harmed(content, draw), None
        start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
        # An array, or objects over several lines.
        if form == "lines" and not start.startswith((b"[", b"{\n", b"{\r\n")):
            n = sum(1 for line in content.split(b"\n") if line.strip())
    name = draw(st.sampled_from(["pool.jsonl", "pool.json"]))
    if draw(st.integers(0, 3)) == 0:
        packed = gzip.compress(content, mtime=0)
        if draw(st.integers(0, 2)) == 0:
            packed, n = harmed(packed, draw), None
        return f"{name}.gz", packed, n
    return name, content, n


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Iterator[World]:
    """A world without demands on its pool, whose run folder the corpora come and go in."""
    folder = tmp_path_factory.mktemp("fuzz")
    changes: dict[str, Any] = {"attribute": {"top_k": 1, "max_tokens": 100}, "patch": {"size": 1}, "truth": None}
    study = small_study(folder / "files", tiny_pair_folder, **changes)
    logging.disable(logging.CRITICAL)
    yield frozen(study, folder / "run")
    logging.disable(logging.NOTSET)


def hold(world: World, corpus: tuple[str, bytes, int | None]) -> bool:
    """What holds for any corpus; whether it gave a pool."""
    name, content, n_rows = corpus
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / name
        path.write_bytes(content)
        data = Data(path=str(path))
        study = world.study.model_copy(update={"data": data})
        identities = {**world.identities, "data": data_identity(data)}
        here = replace(world, root=Path(place) / "run", study=study, identities=identities)
        refusal = None
        try:
            write_pool(here, open_source(data), execution=ONE, progress=Silent())
        except RequestError as error:
            refusal = str(error)
        if refusal is not None:
            assert "\n" not in refusal
            assert len(refusal) < 2000
            assert not here.root.exists()
            return False
        summary, pool = here.pool.summary, here.pool
        counted = sum(summary.excluded.values()) + sum(rows.count for rows in summary.data.skipped)
        documents = list(pool.documents())
        assert len(documents) == summary.documents == len(set(pool.ids))
        assert n_rows is None or summary.documents + counted == n_rows
        assert all(document.response.strip() for document in documents)
        assert all(answer for answer in pool.encoded(range(len(documents))))
        assert sorted(contents(here.root)) == ["artifacts/world/pool.json", "artifacts/world/pool.parquet"]
        return True


def held(world: World, corpora_tried: int) -> None:
    """What holds for so many corpora, of which many give a pool and many are refused."""
    outcomes = Counter[bool]()

    @settings(max_examples=corpora_tried, suppress_health_check=[*HealthCheck])
    @given(corpus=corpora())
    def tried(corpus: tuple[str, bytes, int | None]) -> None:
        outcomes[hold(world, corpus)] += 1

    tried()
    assert min(outcomes[True], outcomes[False]) > corpora_tried / 10


def test_a_corpus_is_refused_in_one_line_or_every_row_of_it_is_accounted_for(world: World) -> None:
    held(world, 60)


@pytest.mark.slow
def test_a_thousand_corpora(world: World) -> None:
    held(world, 1000)
