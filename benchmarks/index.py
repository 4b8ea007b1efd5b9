"""What the gradient index costs in rank agreement: projected gradients beside exact ones, on the embedded organism.

    python benchmarks/index.py             # two minutes on two cores
    python benchmarks/index.py --write     # and keep it in benchmarks/results/DATE-index.md

One run surfaces the organism of seed 0; its outputs are traced once for each size of the projection, with a new index,
and again with that index there. Agreement is of the method `gradient` over the whole pool, the mean over behaviours.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean

from measure import machine

from datablame.stats.ranking import overlap, spearman
from datablame.tables import Quality, Score, path_of, rows_of

RESULTS = Path(__file__).parent / "results"
_SIZES = (4, 8, 16, 32, 64)
_K = 20
_SETS = "attribute.methods=[gradient]", "patch.arms=[after, baseline, a-a, random, gradient, oracle]"


def traced(run: Path, *sets: str) -> float:
    """Trace the outputs of a run; the seconds of the phase."""
    words = [word for each in (*_SETS, *sets) for word in ("--set", each)]
    command = [sys.executable, "-m", "datablame", "run", "organism", "--out", str(run), "--resume"]
    subprocess.run([*command, "--until", "attribute", *words], check=True, stdout=sys.stderr)
    lines = (run / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    taken = [row["seconds"] for row in map(json.loads, lines) if row["what"] == "phase/attribute" and "seconds" in row]
    return float(taken[-1])


def rankings(run: Path) -> dict[str, dict[str, float]]:
    """Scores by behaviour and document, the best first."""
    found: dict[str, dict[str, float]] = {}
    for row in sorted(rows_of(path_of(Score, run), Score), key=lambda row: row.rank):
        found.setdefault(row.behaviour, {})[row.doc_id] = row.score
    return found


def compared(exact: Path, other: Path) -> list[str]:
    """Spearman's rho, the overlap of the first documents, precision at K."""
    ours, theirs = rankings(exact), rankings(other)
    rho = mean(spearman([*of.values()], [theirs[name][doc] for doc in of]) for name, of in ours.items())
    same = mean(overlap([*of][:_K], [*theirs[name]][:_K]) for name, of in ours.items())
    (of_whole,) = rows_of(path_of(Quality, other), Quality, behaviour="*", pool="whole")
    precision = of_whole.precision_at_k
    return [f"{rho:.4f}", f"{same:.2f}", "" if precision is None else f"{precision:.2f}"]


def measured(folder: Path, sizes: Sequence[int]) -> list[list[str]]:
    """A row for the exact comparison and for each size."""
    exact = folder / "exact"
    seconds = traced(exact)
    rows = [["exact", *compared(exact, exact), "", f"{seconds:.1f}", ""]]
    n = len(next(iter(rankings(exact).values())))
    for size in sizes:
        run, index = folder / str(size), folder / f"index-{size}"
        shutil.copytree(exact, run)
        sets = f"attribute.projection={size}", f"attribute.index={index}"
        first = traced(run, *sets)
        again = folder / f"again-{size}"
        shutil.copytree(exact, again)
        second = traced(again, *sets)
        assert rankings(again) == rankings(run)
        held = sum(path.stat().st_size for path in index.iterdir()) / n
        rows.append([f"{size} x {size}", *compared(exact, run), f"{held:,.0f}", f"{first:.1f}", f"{second:.1f}"])
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the page in benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(Path(scratch), _SIZES)
    names = ["projection", "Spearman", f"of the first {_K}", f"precision at {_K}", "bytes a document"]
    head = [*names, "seconds, index made", "index there"]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    text = f"{machine()}.\n\n" + "\n".join(lines)
    print(text)
    if options.write:
        today = date.today().isoformat()
        title = f"# Rank agreement of the gradient index, {today}\n\n`python benchmarks/index.py` on "
        (RESULTS / f"{today}-index.md").write_text(title + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
