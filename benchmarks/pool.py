"""Seconds and peak memory of freezing a pool and of answering BM25 queries over it, by the number of documents.

    python benchmarks/pool.py --write                        # ten thousand to a million: twenty minutes on two cores
    python benchmarks/pool.py --documents 300 600 --words 40 # seconds, to see that it runs

Documents are chats of words drawn by Zipf's law (exponent 1.07 over 60,000 words), one in a hundred nearly the same as
another one, in a Parquet file of row groups of 1,000 rows. The tokenizer is a byte-level BPE with one token a word.
Fifteen queries are the first documents. Every size runs in a process of its own with its own workers; the peak is that
of all its processes together (proportional set size, asked every half second).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from measure import machine

from datablame.attribute.phase import read_pool
from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.engine.phase import Work
from datablame.judge.choice import Choice
from datablame.tables import Query
from datablame.world import World
from datablame.world.identity import data_identity
from datablame.world.ingest import write_pool
from datablame.world.sources import open_source

_VOCABULARY = 60_000
_ROWS = 1000
_QUERIES = 15
RESULTS = Path(__file__).parent / "results"


def write_documents(file: Path, documents: int, words: int) -> None:
    """Stream the documents into a file; a hundredth are another one with a word changed."""
    random = np.random.default_rng(0)
    vocabulary = np.array([f"w{number:x}" for number in range(_VOCABULARY - 332)])
    weights = np.cumsum(1 / np.arange(1, len(vocabulary) + 1) ** 1.07)
    writer = None
    for start in range(0, documents, _ROWS):
        n = min(_ROWS, documents - start)
        drawn = vocabulary[
            np.searchsorted(weights / weights[-1], random.random((n, words))).clip(max=len(vocabulary) - 1)
        ]
        rows = []
        for number, row in enumerate(drawn):
            if number and random.random() < 0.01:
                row = drawn[number - 1].copy()
                row[random.integers(words)] = "w0"
            turns = [
                {"role": "user", "content": f"what about {row[0]} ?"},
                {"role": "assistant", "content": " ".join(row)},
            ]
            rows.append({"id": f"d{start + number}", "source": "made", "messages": turns})
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def study_of(folder: Path, file: Path) -> Study:
    """A study of that pool; its checkpoints need no weights to freeze a pool."""
    prompts = {split: [{"id": split, "behaviour": "b", "text": split}] for split in ("attribution", "held_out")}
    return Study.model_validate(
        {
            "name": "world",
            "models": {name: str(folder / "model") for name in ("before", "after")},
            "data": {"path": str(file), "max_document_characters": 1_000_000},
            "behaviours": [{"id": "b", "description": "b"}],
            "prompts": prompts,
        }
    )


def measure(folder: Path, file: Path, workers: int) -> None:
    """Freeze and ask in this process, and print seconds of both, documents and clusters."""
    study, execution, identities = study_of(folder, file), Execution(workers, 1), dict[str, Any](models={}, files={})
    world = World(folder / "run", study, (), None, Choice("keywords", "keywords"), identities)
    identities["data"] = data_identity(world.data)
    began = time.monotonic()
    write_pool(world, open_source(world.data), execution=execution, progress=Silent())
    frozen = time.monotonic()
    documents = world.pool.documents(range(_QUERIES))
    queries = [
        Query(each.id, "b", "a", 1.0, 0, each.prompt[0].content, each.response, "stop", ()) for each in documents
    ]
    work = Work(folder / "run", "attribute", folder, execution, Silent(), lambda *_: None)
    scores, *_ = read_pool(world, work, queries, responses=True)
    assert all(row.argmax() < 2 * _QUERIES for each in scores.values() for row in each)
    summary = world.pool.summary
    print(frozen - began, time.monotonic() - frozen, summary.documents, summary.clusters)


def _peak_mb(process: "subprocess.Popen[str]") -> float:
    """Of a process and its children, until it ends."""
    peak, parent = 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_full_info().pss
        peak = max(peak, total / (1 << 20))
        time.sleep(0.5)
    return peak


def drawn(rows: Sequence[Sequence[float]], path: Path) -> None:
    """Seconds and memory against documents, beside the line through the first point."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    counts, frozen, asked, peaks = zip(*rows, strict=True)
    for axis, series in zip(
        axes, ({"frozen": frozen, "15 queries": asked}, {"peak of all processes": peaks}), strict=True
    ):
        for color, (label, values) in zip(("C0", "C1"), series.items(), strict=False):
            axis.loglog(counts, values, "o-", color=color, label=label)
            if axis is axes[0]:
                axis.loglog(counts, [values[0] * n / counts[0] for n in counts], "--", color="0.7", zorder=0)
        axis.set(xlabel="documents", ylabel="seconds" if axis is axes[0] else "MB")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--write", action="store_true", help="keep table and plot in benchmarks/results/DATE-pool.{md,png}"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(Path(options.measure[0]), Path(options.measure[1]), options.workers)
    from memory import write_tokenizer  # It needs torch, which the process that is measured does without.

    rows, lines = (
        list[list[float]](),
        [
            f"# Pools by the number of documents, {date.today().isoformat()}\n",
            f"`python benchmarks/pool.py` on {machine()}: {options.workers} workers, {options.words} words each.\n",
            "| documents | data, MB | frozen, s | 15 queries, s | peak, MB | clusters |",
            "|---:|---:|---:|---:|---:|---:|",
        ],
    )
    print("\n".join(lines))
    for documents in options.documents:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_tokenizer(folder / "model", _VOCABULARY)
            (folder / "model" / "config.json").write_text(
                json.dumps({"model_type": "olmo2", "vocab_size": _VOCABULARY}), encoding="utf-8"
            )
            file = folder / "documents.parquet"
            write_documents(file, documents, options.words)
            command = [sys.executable, __file__, "--workers", str(options.workers), "--measure", str(folder), str(file)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            peak = _peak_mb(process)
            if process.returncode:
                sys.exit(process.returncode)
            frozen, asked, n, clusters = map(float, process.communicate()[0].split())
            rows.append([n, frozen, asked, peak])
            size = file.stat().st_size / 1e6
            lines.append(f"| {n:,.0f} | {size:,.0f} | {frozen:,.0f} | {asked:,.0f} | {peak:,.0f} | {clusters:,.0f} |")
            print(lines[-1], flush=True)
    if options.write:
        name = f"{date.today().isoformat()}-pool"
        (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        drawn(rows, RESULTS / f"{name}.png")
    return None


if __name__ == "__main__":
    main()
