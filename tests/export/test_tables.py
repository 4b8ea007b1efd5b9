"""Tables for other tools: whole, flat, explained, redacted, inert."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.report.fake_run import HOSTILE

from datablame.engine.phase import Tables
from datablame.export.flat import TABLES, columns_of
from datablame.export.source import Source
from datablame.export.write import write
from datablame.report.redaction import hidden
from datablame.tables import ArmSample, ArmTest, Flag, Score, ShownDocument, SurfaceSample

KINDS = ("parquet", "csv", "datasets")


@pytest.fixture(scope="module")
def folders(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tables")
    for kind in KINDS:
        write(source, kind, base / kind)
    write(replace(source, redact=False), "csv", base / "shown")
    return {kind: base / kind for kind in (*KINDS, "shown")}


def read_csv(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_holds_every_row_and_every_plain_value(source: Source, folders: dict[str, Path]) -> None:
    tests = Tables(source.world.root).rows(ArmTest)
    table = pq.read_table(folders["parquet"] / "patch_tests.parquet").to_pylist()
    assert len(table) == len(tests) > 0
    for row, test in zip(table, tests, strict=True):
        assert row["rate"] == test.rate
        assert row["counts.harmful"] == test.counts.harmful
        assert row["to_random.p"] == (test.to_random and test.to_random.p)
        assert tuple(json.loads(row["per_seed"])) == test.per_seed
    assert read_csv(folders["csv"], "patch_tests")[0]["rate"] == str(tests[0].rate)


def test_scores_are_those_of_the_shown_documents(source: Source, folders: dict[str, Path]) -> None:
    tables = Tables(source.world.root)
    shown = {row.doc_id for row in tables.rows(ShownDocument)}
    wanted = [row for row in tables.rows(Score) if row.doc_id in shown]
    assert pq.read_table(folders["parquet"] / "attribute_scores.parquet").num_rows == len(wanted)
    assert len(read_csv(folders["csv"], "attribute_flags")) == len(tables.rows(Flag))


@pytest.mark.parametrize("kind", KINDS)
def test_no_harmful_text_leaves_the_run_and_prompts_do(source: Source, folders: dict[str, Path], kind: str) -> None:
    for path in folders[kind].iterdir():
        text = str(pq.read_table(path).to_pydict()) if path.suffix == ".parquet" else path.read_text(encoding="utf-8")
        assert "secret" not in text, path.name
    rows: list[Any] = Tables(source.world.root).rows(SurfaceSample)
    first = next(row for row in rows if row.label == "harmful")
    held = (
        pq.read_table(folders[kind] / "surface_samples.parquet").to_pylist()
        if kind != "csv"
        else read_csv(folders[kind], "surface_samples")
    )
    assert hidden(first.text) in {row["text"] for row in held}
    assert sum(row["text"].startswith("[hidden: ") for row in held) == sum(row.label == "harmful" for row in rows)
    assert "token_ids" not in held[0]


def test_the_number_of_hidden_texts_is_told(source: Source, tmp_path: Path) -> None:
    samples = source.read(SurfaceSample)
    assert samples.hidden == sum(2 for row in samples.rows if row.label == "harmful")
    arms = source.read(ArmSample)
    assert arms.hidden == sum(row.text.startswith("[hidden: ") for row in arms.rows) > 0
    count = write(source, "parquet", tmp_path / "out")
    assert count == sum(source.read(row).hidden for row in TABLES) > samples.hidden + arms.hidden
    assert f"{count} texts are hidden" in (tmp_path / "out/README.md").read_text()


def test_cells_are_inert_in_a_spreadsheet_and_control_characters_seen(folders: dict[str, Path]) -> None:
    rows = read_csv(folders["shown"], "surface_samples")
    assert rows[0]["text"] == "'=1+1 open"
    text = rows[1]["text"]
    assert text.endswith("\\u0000")
    assert "\\u001b[31mred" in text
    assert HOSTILE.split("\x1b")[0].split("\n")[0] in text
    whole = b"".join(path.read_bytes() for path in folders["shown"].glob("*.csv"))
    assert not {0, 27} & set(whole)


def test_parquet_has_the_exact_texts(source: Source, tmp_path: Path) -> None:
    shown = replace(source, redact=False)
    write(shown, "parquet", tmp_path / "out")
    texts = pq.read_table(tmp_path / "out/surface_samples.parquet")["text"].to_pylist()
    assert texts == [row.text for row in Tables(source.world.root).rows(SurfaceSample)]


def test_the_readme_explains_every_table_and_column(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        text = (folders[kind] / "README.md").read_text(encoding="utf-8")
        for path in folders[kind].iterdir():
            if path.suffix in (".csv", ".parquet"):
                assert f"\n## {path.stem}\n" in text
    assert "| `ess` |" not in text
    for row in TABLES:
        for column in columns_of(row):
            assert column.words
    assert "An arm's mean rate less a reference's" in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text


def test_load_dataset_reads_every_table(folders: dict[str, Path], tmp_path: Path) -> None:
    from datasets import get_dataset_config_names, load_dataset

    folder, cache = str(folders["datasets"]), str(tmp_path)
    default = load_dataset(folder, cache_dir=cache)["train"]
    assert default.num_rows == pq.read_table(folders["datasets"] / "surface_samples.parquet").num_rows
    names = get_dataset_config_names(folder)
    assert {f"{name}.parquet" for name in names} == {path.name for path in folders["datasets"].glob("*.parquet")}
    for name in names:
        table = load_dataset(folder, name, cache_dir=cache)["train"]
        assert table.column_names == pq.read_schema(folders["datasets"] / f"{name}.parquet").names


def test_two_exports_are_the_same_bytes(source: Source, folders: dict[str, Path], tmp_path: Path) -> None:
    for kind in KINDS:
        write(source, kind, tmp_path / kind)
        for path in folders[kind].iterdir():
            assert path.read_bytes() == (tmp_path / kind / path.name).read_bytes()


def test_a_phase_that_is_not_done_is_left_out_and_named(source: Source, tmp_path: Path) -> None:
    begun = replace(source, states={**source.states, "patch": "stale"})
    write(begun, "csv", tmp_path / "out")
    assert not list((tmp_path / "out").glob("patch_*"))
    assert "Left out: the phase patch, which is stale." in (tmp_path / "out/README.md").read_text()
