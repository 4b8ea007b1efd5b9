"""Datasets read from a hub on loopback by the real libraries, each batch of requests in a process of its own."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.world.hub_server import COMMIT, Hub, hub
from tests.worlds import read_pool

CODE = """
import json, sys
from datablame.config.schema import Data
from datablame.errors import RequestError
from tests.worlds import read_pool

def tried(settings):
    try:
        pool = read_pool(Data(**settings))
    except RequestError as error:
        return {"refused": str(error)}
    return {"ids": [each.id for each in pool.documents], "commit": pool.commit, "skipped": pool.skipped}

print(json.dumps([tried(settings) for settings in json.loads(sys.argv[1])]))
"""
README = """---
configs:
- config_name: chats
  data_files:
  - {split: train, path: chats/*.jsonl}
- config_name: pairs
  data_files:
  - {split: train, path: pairs/*.jsonl}
---
"""


def ask(home: Path, endpoint: str, settings: Sequence[dict[str, Any]], *, offline: bool = False) -> list[Any]:
    hub_settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(settings))],
        env={**os.environ, **hub_settings, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "how ?"}, {"role": "assistant", "content": f"so {name}"}]
    return {"id": name, "messages": turns, "unused": "x" * 50}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repositories")
    sharded, parts = root / "sharded", root / "parts"
    for folder in (sharded / "data", parts / "chats", parts / "pairs"):
        folder.mkdir(parents=True)
    for shard in range(3):
        rows = [row(f"d{shard}{n}") for n in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), sharded / f"data/train-{shard:05d}-of-00003.parquet")
    pq.write_table(pa.Table.from_pylist([row("t")]), sharded / "data/test-00000-of-00001.parquet")
    (parts / "README.md").write_text(README)
    (parts / "chats" / "one.jsonl").write_text(json.dumps(row("chat")) + "\n")
    pair = {"name": "pair", "prompt": "how ?", "good": "so", "bad": "no"}
    (parts / "pairs" / "one.jsonl").write_text(json.dumps(pair) + "\n")
    return {"org/sharded": sharded, "org/gated": sharded, "org/parts": parts}


@pytest.fixture(scope="module")
def served(repositories: dict[str, Path]) -> Iterator[Hub]:
    with hub(repositories, gated=frozenset(["org/gated"])) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


PAIRS = {"id": "name", "chosen": "good", "rejected": "bad"}


@pytest.fixture(scope="module")
def answers(home: Path, served: Hub) -> dict[str, Any]:
    asked: dict[str, dict[str, Any]] = {
        "streamed": {"path": "org/sharded", "streaming": True},
        "streamed part": {"path": "org/sharded", "streaming": True, "documents": 7},
        "streamed JSONL": {"path": "org/parts", "subset": "chats", "streaming": True},
        "whole": {"path": "org/sharded"},
        "part": {"path": "org/sharded", "documents": 7},
        "split": {"path": "org/sharded", "split": "test", "revision": "v1"},
        "pairs": {"path": "org/parts", "subset": "pairs", "columns": PAIRS},
        "unknown": {"path": "org/nothing"},
        "gated": {"path": "org/gated"},
        "revision": {"path": "org/sharded", "revision": "v9"},
        "no split": {"path": "org/sharded", "split": "validation"},
        "no subset": {"path": "org/parts", "subset": "poems"},
        "no subset named": {"path": "org/parts"},
        "no column": {"path": "org/sharded", "columns": {"messages": "chat"}},
        "no column, streamed": {"path": "org/sharded", "columns": {"messages": "chat"}, "streaming": True},
        "no id": {"path": "org/bad name!"},
    }
    return dict(zip(asked, ask(home, served.endpoint, list(asked.values())), strict=True))


EVERY = [f"d{shard}{n}" for shard in range(3) for n in range(20)]


def test_a_hub_dataset_is_read_with_the_commit_that_it_came_from(answers: dict[str, Any]) -> None:
    assert answers["whole"] == {"ids": EVERY, "commit": COMMIT, "skipped": {}}
    assert answers["split"] == {"ids": ["t"], "commit": COMMIT, "skipped": {}}
    assert answers["pairs"]["ids"] == ["pair"]


def test_streaming_gives_the_same_documents_and_the_same_subset(answers: dict[str, Any]) -> None:
    assert answers["streamed"] == answers["whole"]
    assert answers["streamed part"] == answers["part"]
    assert len(answers["part"]["ids"]) == 7
    assert answers["streamed JSONL"]["ids"] == ["chat"]


def test_the_subset_is_that_of_the_same_rows_in_one_local_file(answers: dict[str, Any], tmp_path: Path) -> None:
    from datablame.config.schema import Data

    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row(name)) + "\n" for name in reversed(EVERY)))
    pool = read_pool(Data(path=str(path), documents=7))
    assert {document.id for document in pool.documents} == set(answers["part"]["ids"])


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        (
            "unknown",
            ["data.path = org/nothing is neither a file or folder here nor a public dataset", "correct the name"],
        ),
        ("gated", ["data.path = org/gated is gated; ask for access", "HF_TOKEN"]),
        ("revision", ["data.revision = v9 is no branch, tag or commit of org/sharded; correct it"]),
        ("no split", ["data.split = validation is no split of org/sharded; there is train, test"]),
        ("no subset", ["data.subset = poems is no subset of org/parts; there is chats, pairs"]),
        ("no subset named", ["data.subset is missing: org/parts has chats, pairs; name one"]),
        ("no column", ["data.columns.messages = chat is no column of org/sharded; there are id, messages, unused"]),
        ("no column, streamed", ["data.columns.messages = chat is no column of org/sharded; there are id, messages"]),
        ("no id", ["data.path = org/bad name! is neither a file or folder here nor a public dataset"]),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_remedy(answers: dict[str, Any], case: str, parts: list[str]) -> None:
    refused = answers[case]["refused"]
    assert "\n" not in refused
    assert all(part in refused for part in parts), refused


@pytest.mark.slow
def test_streaming_leaves_no_copy_of_the_set_on_disk(served: Hub, tmp_path: Path) -> None:
    [found] = ask(tmp_path, served.endpoint, [{"path": "org/sharded", "streaming": True}])
    assert len(found["ids"]) == 60
    assert [file for file in tmp_path.rglob("*") if file.suffix in (".parquet", ".arrow")] == []


def test_a_copy_in_the_cache_serves_offline_and_only_at_its_own_commit(answers: dict[str, Any], home: Path) -> None:
    asked = [
        {"path": "org/sharded"},
        {"path": "org/sharded", "revision": COMMIT},
        {"path": "org/sharded", "revision": "1" * 40},
        {"path": "org/sharded", "split": "validation"},
        {"path": "org/nothing"},
    ]
    copy, same, other, split, nothing = ask(home, "http://127.0.0.1:9", asked, offline=True)
    assert copy == same == answers["whole"]
    assert (
        f"data.revision = {'1' * 40} of org/sharded is not in the cache, which has commit {COMMIT}" in other["refused"]
    )
    assert "there is train, test" in split["refused"]
    assert "nor in the cache, and HF_HUB_OFFLINE is set; unset it" in nothing["refused"]


def test_no_network_is_found_out_in_seconds(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    began = time.monotonic()
    first, _ = ask(tmp_path, endpoint, [{"path": "org/sharded"}, {"path": "org/sharded", "streaming": True}])
    assert time.monotonic() - began < 60, "imports included"
    assert "the hub cannot be reached" in first["refused"]
    assert "HF_HUB_OFFLINE=1" in first["refused"]


@pytest.mark.slow
def test_a_hub_that_is_down_is_told_from_a_dataset_that_is_not_there(
    repositories: dict[str, Path], tmp_path: Path
) -> None:
    with hub(repositories, down=True) as broken:
        [found] = ask(tmp_path, broken.endpoint, [{"path": "org/sharded"}])
    assert "the hub fails (503); try again later" in found["refused"]
