"""Peak memory and seconds of freezing the pool against the number and the length of its documents.

    python benchmarks/world_memory.py > benchmarks/results/DATE-world-memory.md
    python benchmarks/world_memory.py --documents 300 600 --words 40    # seconds, to see that it runs

Documents are chats of words drawn by Zipf's law (exponent 1.07 over 60,000 words), one in a hundred nearly the same as
another one, in a Parquet file of row groups of 1,000 rows. The tokenizer is a byte-level BPE with one token a word.
Every size runs in a process of its own with its own workers; the peak is that of the process that freezes, as the
kernel counts it (VmHWM), above the libraries' own, and that of its largest worker.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.judge.choice import Choice
from datablame.world import World
from datablame.world.ingest import write_pool
from datablame.world.sources import open_source

_VOCABULARY = 60_000
_ROWS = 1000


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
    """Freeze in this process and print 'base MB, peak MB, largest worker MB, seconds, documents, clusters'."""
    base = _peak_mb()
    began = time.monotonic()
    identities: dict[str, dict[str, Any]] = {"models": {}, "data": {}, "files": {}}
    world = World(folder / "run", study_of(folder, file), (), None, Choice("keywords", "keywords"), identities)
    write_pool(world, open_source(world.data), execution=Execution(workers, 1), progress=Silent())
    seconds = time.monotonic() - began
    summary, size = world.pool.summary, world.pool.path.stat().st_size
    from datablame.engine.execute import _peaks

    worker = max(_peaks.values(), default=0.0)
    print(base, _peak_mb(), worker, seconds, summary.documents, summary.clusters, size)


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[12_500, 50_000, 200_000])
    parser.add_argument("--words", type=int, nargs="+", default=[250])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(Path(options.measure[0]), Path(options.measure[1]), options.workers)
    from memory import write_tokenizer  # It needs torch, which the process that is measured does without.

    print(f"# Memory of the frozen pool, {date.today().isoformat()}\n")
    print(f"`python benchmarks/world_memory.py {' '.join(sys.argv[1:])}`, {options.workers} workers of one thread.\n")
    print("| documents | words each | data, MB | libraries, MB | peak, MB | a worker, MB | seconds | clusters |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for words in options.words:
        for documents in options.documents:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                write_tokenizer(folder / "model", _VOCABULARY)
                (folder / "model" / "config.json").write_text('{"model_type": "olmo2"}', encoding="utf-8")
                file = folder / "documents.parquet"
                write_documents(file, documents, words)
                command = [sys.executable, __file__, "--workers", str(options.workers), "--measure", str(folder)]
                done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                base, peak, worker, seconds, n, clusters, _ = map(float, done.stdout.split())
                print(
                    f"| {n:,.0f} | {words:,} | {file.stat().st_size / 1e6:,.0f} | {base:,.0f} | {peak:,.0f} "
                    f"| {worker:,.0f} | {seconds:,.0f} | {clusters:,.0f} |",
                    flush=True,
                )
    return None


if __name__ == "__main__":
    main()
