import gzip
import json
import logging
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.world.test_documents import CASES, good, jsonl, read

from datablame.config.schema import Data
from datablame.errors import RequestError
from datablame.world.sources import open_source


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The hub's layout: two shards of train, one of test."""
    root = tmp_path / "pool"
    parquet(root / "data/train-00001-of-00002.parquet", [good(n) for n in range(3, 6)])
    parquet(root / "data/train-00000-of-00002.parquet", [good(n) for n in range(3)])
    parquet(root / "data/test-00000-of-00001.parquet", [good(9)])
    return root


def ids(*where: Any, **settings: Any) -> list[str]:
    return [document.id for document in read(*where, **settings).documents]


def test_a_folder_in_the_hubs_layout_is_read_split_by_split(folder: Path) -> None:
    assert ids(folder) == [f"d{n}" for n in range(6)]
    assert ids(folder, split="test") == ["d9"]
    with pytest.raises(RequestError, match=r"data\.split = dev is no split of .*pool; there is train, test$"):
        read(folder, split="dev")
    with pytest.raises(RequestError, match=r"train\[:10%\] is no split .* for a part of a split set data\.documents"):
        read(folder, split="train[:10%]")


def test_a_readme_declares_subsets_as_on_the_hub(tmp_path: Path) -> None:
    configs = [f"- {{config_name: {name}, data_files: {name}.jsonl}}\n" for name in ("a", "b")]
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    for number, name in enumerate("ab"):
        jsonl(tmp_path, [good(number)], f"{name}.jsonl")
    assert ids(tmp_path, subset="b") == ["d1"]
    with pytest.raises(RequestError, match=r"data\.subset is missing: .* has a, b; name one"):
        read(tmp_path)
    with pytest.raises(RequestError, match=r"data\.subset = c is no subset of .*; there is a, b"):
        read(tmp_path, subset="c")


def test_a_torn_row_in_a_folder_costs_itself_only(tmp_path: Path) -> None:
    jsonl(tmp_path, [good(1), b'{"id": "torn'], "one.jsonl")
    jsonl(tmp_path, [good(2)], "two.jsonl")
    pool = read(tmp_path)
    assert [document.id for document in pool.documents] == ["d1", "d2"]
    assert pool.skipped == {"not JSON": 1}


def test_a_pattern_names_several_files(tmp_path: Path) -> None:
    for number in (2, 1):
        jsonl(tmp_path, [good(number)], f"part-{number}.jsonl")
    jsonl(tmp_path, [good(3)], "other.jsonl")
    assert ids(tmp_path / "part-*.jsonl") == ["d1", "d2"]
    with pytest.raises(RequestError, match=r"data\.path = .*none-\*\.parquet matches no file here"):
        read(tmp_path / "none-*.parquet")


def test_compressed_lines_and_one_json_array_are_read(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(good(n)) for n in range(50)).encode()
    (tmp_path / "pool.jsonl.gz").write_bytes(gzip.compress(lines))
    assert len(ids(tmp_path / "pool.jsonl.gz")) == 50
    (tmp_path / "pool.json").write_text(json.dumps([good(n) for n in range(50)], indent=1))
    assert len(ids(tmp_path / "pool.json")) == 50


def test_a_torn_compressed_file_gives_what_is_whole(tmp_path: Path) -> None:
    noise = random.Random(0)
    rows = [{**good(n), "noise": noise.randbytes(40).hex()} for n in range(3000)]
    whole = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    (tmp_path / "pool.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    pool = read(tmp_path / "pool.jsonl.gz")
    assert 1000 < len(pool.documents) < 2000
    assert pool.skipped == {"the compressed file is torn, and what came after is lost": 1}


def test_a_folder_without_data_and_a_path_that_is_not_here_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is a folder without \.parquet or \.jsonl files"):
        read(tmp_path)
    with pytest.raises(RequestError, match=r"nowhere is not here; correct the path, or name a dataset on the hub"):
        read(tmp_path / "nowhere")


def test_another_kind_of_file_is_refused_alone_and_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("text\nhello\n")
    for path in (tmp_path, tmp_path / "pool.csv"):
        with pytest.raises(RequestError, match=r"pool\.csv is neither \.parquet nor \.jsonl; convert it"):
            read(path)


def test_the_subset_does_not_depend_on_shards(folder: Path, tmp_path: Path) -> None:
    whole = jsonl(tmp_path, [good(n) for n in (4, 1, 0, 5, 3, 2)])
    assert sorted(ids(folder, documents=3)) == sorted(ids(whole, documents=3))


def test_a_subset_larger_than_the_pool_takes_all_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "datablame"):
        assert len(ids(folder, documents=50_000)) == 6
    assert "data.documents = 50000, but" in caplog.text
    assert "has 6 usable; all are taken" in caplog.text


def test_a_subset_of_a_large_pool_holds_only_a_few_documents(tmp_path: Path) -> None:
    """10 MB of rows; all of them would be 10 MB and more of documents."""
    path = tmp_path / "pool.jsonl"
    with path.open("w") as file:
        for number in range(5000):
            file.write(json.dumps({**good(number), "text": "", "messages": [
                {"role": "user", "content": "how ?"}, {"role": "assistant", "content": f"{number} " * 400}
            ]}) + "\n")  # fmt: skip
    tracemalloc.start()
    try:
        assert len(ids(path, documents=20)) == 20
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_ids_that_stand_twice_are_counted_where_the_subset_has_them(tmp_path: Path) -> None:
    rows = [good(n) for n in range(300)] * 2
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        pool = read(jsonl(tmp_path, rows), documents=25)
        found.append(({document.id for document in pool.documents}, pool.skipped))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == {"the id stands twice": 25}


def test_copies_without_ids_are_drawn_one_by_one(tmp_path: Path) -> None:
    """A text that stands 500 times among 1,000 is about half of any subset, neither all of it nor none."""
    rows = [{"messages": good(n if n % 2 else 0)["messages"]} for n in range(1000)]
    pool = read(jsonl(tmp_path, rows), documents=100)
    copies = sum(document.response == "so 0" for document in pool.documents)
    assert 30 < copies < 70


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    jsonl(folder.parent, [good(1)])
    assert ids("~/pool") == [f"d{n}" for n in range(6)]
    assert ids("~/pool/data/test*.parquet") == ["d9"]
    assert ids("~/pool.jsonl") == ["d1"]


def test_a_file_that_would_be_in_no_split_is_refused_and_a_pattern_reads_all() -> None:
    folder = CASES / "folder-split-words"
    with pytest.raises(
        RequestError, match=r"1 files, the first extra-brand\.jsonl, would be in no split.*train has stag"
    ):
        read(folder)
    assert len(ids(f"{folder}/*.jsonl")) == 12


@pytest.mark.parametrize("name", ["c.parquet", "c.csv", "c.jsonl.xz", "C.JSONL", "linked/c.jsonl"])
def test_a_file_that_datasets_would_forget_is_refused_and_what_is_no_data_is_not(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    pool = tmp_path / "pool [2]"
    pool.mkdir()
    for file in ("a.jsonl", "b.jsonl"):
        jsonl(pool, [good(ord(file[0]))], file)
    (pool / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (pool / "dataset_info.json").write_text("{}")
    parquet(pool / "c.parquet", [good(2)]) if name == "c.parquet" else jsonl(pool, [good(2)], name)
    with pytest.raises(
        RequestError, match=rf"the first .*, would be in no split.* pattern \({re.escape(str(pool))}/\*\*/"
    ):
        read(pool)
    assert len(ids(f"{pool}/**/*.jsonl")) == 2 + name.startswith("linked")
    plain = pool.rename(tmp_path / "plain")
    (plain / name).unlink()
    (plain / "2024").mkdir()
    (plain / "a.jsonl").rename(plain / "2024" / "a.jsonl")
    (plain / "1999").symlink_to("2024")
    assert len(ids(plain)) == 2


@pytest.mark.parametrize("name", ["pool.parquet", "pool.jsonl", "pool.jsonl.gz", "pool.jsonl.zst"])
def test_what_only_stands_for_a_file_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.symlink_to("nowhere")
    jsonl(tmp_path, [good(1)], "whole.jsonl")
    for path in (file, tmp_path):
        with pytest.raises(RequestError, match=rf"{name} cannot be read \(a link that leads nowhere\)"):
            read(path)
    file.unlink()
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    for pattern in (name, "*"):
        with pytest.raises(RequestError, match=rf"{name} is a pointer that Git LFS left .* git lfs pull"):
            read(tmp_path / pattern)
    with pytest.raises(RequestError, match=rf"data\.path = s3://bucket/{name} is an address; give the path of"):
        read(f"s3://bucket/{name}")


def test_two_answers_and_a_column_that_says_which_is_better_are_no_pair(tmp_path: Path) -> None:
    row = {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1}
    columns = {"chosen": "response_0", "rejected": "response_1"}
    for path in (parquet(tmp_path / "pool.parquet", [row]), jsonl(tmp_path, [row])):
        with pytest.raises(RequestError, match="response_0 and response_1; write the better one as chosen"):
            read(path)
        with pytest.raises(RequestError, match="as chosen and rejected, but better_response_id says row by row which"):
            read(path, columns=columns)
    others = {"quality_score": 1, "label_source": "people", "multiple_choice": True}
    assert len(ids(jsonl(tmp_path, [dict(list(row.items())[:-1]) | others]), columns=columns)) == 1


def test_a_date_that_python_cannot_hold_costs_its_row(tmp_path: Path) -> None:
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.timestamp("s"))])
    rows = [[{**each, "at": at} for each in good(1)["messages"]] for at in (0, 10**15)]
    pq.write_table(pa.table({"messages": pa.array(rows, pa.list_(message))}), tmp_path / "pool.parquet")
    pool = read(tmp_path / "pool.parquet")
    assert (len(pool.documents), pool.skipped) == (1, {"a date that Python cannot hold": 1})


def test_files_of_other_splits_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "datablame"):
        pool = read(folder)
    assert pool.summary.other_files == ("data/test-00000-of-00001.parquet",)
    assert "not read, since they are of other splits or subsets: data/test-" in caplog.text
    assert [(file.file, file.rows) for file in pool.summary.files] == [
        ("data/train-00000-of-00002.parquet", 3),
        ("data/train-00001-of-00002.parquet", 3),
    ]


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([good(n) for n in range(4)])
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one.select([3, 1]), test=one.select([0])).save_to_disk(str(tmp_path / "both"))
    assert ids(tmp_path / "one") == ["d0", "d1", "d2", "d3"]
    assert ids(tmp_path / "both") == ["d3", "d1"]
    assert ids(tmp_path / "both", split="test") == ["d0"]
    with pytest.raises(RequestError, match=r"data\.split = dev is no split of .*; there is train, test"):
        read(tmp_path / "both", split="dev")


def test_lines_in_zstandard_are_read_and_a_torn_file_gives_what_is_whole(tmp_path: Path) -> None:
    noise, path = random.Random(0), tmp_path / "pool.jsonl.zst"
    rows = [{**good(n), "noise": noise.randbytes(40).hex()} for n in range(3000)]
    with pa.output_stream(path, compression="zstd") as stream:
        stream.write("\n".join(map(json.dumps, rows)).encode())
    assert len(ids(path)) == 3000
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    pool = read(path)
    assert 100 < len(pool.documents) < 2900
    assert pool.skipped["the compressed file is torn, and what came after is lost"] == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.ndjson", "array.jsonl", "array.json", "jq.json"])
def test_line_ends_byte_order_marks_and_arrays_cost_no_row(tmp_path: Path, name: str, encoding: str) -> None:
    rows = [good(1), good(2)]
    text = "\n\n".join(json.dumps(row, indent=1 if name == "jq.json" else None) for row in rows)
    text = json.dumps(rows, indent=1) if name.startswith("array") else text
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert ids(tmp_path / name) == ["d1", "d2"]


def test_utf_16_and_a_split_of_a_file_are_refused_by_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [good(1)])
    with pytest.raises(RequestError, match=r"data\.split = test is for folders and the hub, and .*; leave it out"):
        read(path, split="test")
    path.write_text(json.dumps(good(1)), encoding="utf-16")
    with pytest.raises(RequestError, match=r"pool\.jsonl is UTF-16; save it as UTF-8"):
        read(path)


def test_the_last_file_of_many_is_looked_at_before_the_first_is_read(tmp_path: Path) -> None:
    for number in range(3):
        parquet(tmp_path / f"part-{number}.parquet", [good(number)])
    parquet(tmp_path / "part-9.parquet", [{"question": "a"}])
    with pytest.raises(RequestError, match=r"part-9\.parquet has the columns question, but none of"):
        open_source(Data(path=str(tmp_path / "*.parquet")))
