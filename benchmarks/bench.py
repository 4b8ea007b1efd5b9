"""Every comparison in one table, beside the ratios of the last committed run.

    python benchmarks/bench.py             # an hour and a half on two cores; nothing else should run
    python benchmarks/bench.py --reduced   # minutes, at sizes that say nothing, to see that everything runs
    python benchmarks/bench.py --write     # keep the ratios as those to compare with, and results/DATE-bench.md

A ratio is ours over theirs in time, medians of interleaved rounds in one process: below 1 we are faster. What moved by
more than 15 % against `benchmarks/ratios.json` is printed and makes the exit code 1.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import bm25
import curvature
import gradients
import lora
import sampler
from measure import MOVED, machine, moved, table

KEPT = Path(__file__).parent / "ratios.json"
_SETS = {
    "sampler": sampler.rows,
    "gradients": gradients.rows,
    "curvature": curvature.rows,
    "lora": lora.rows,
    "bm25": bm25.rows,
}


def main() -> None:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(_SETS), default=list(_SETS), help="these sets alone")
    parser.add_argument("--reduced", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--write", action="store_true", help="keep these ratios as the ones to compare with")
    options = parser.parse_args()
    if options.reduced and options.write:
        parser.error("--reduced measures nothing worth keeping; leave out --write")
    found = [row for name in options.only for row in _SETS[name](options.reduced)]
    text = f"{machine()}\n\n{table(found)}"
    print(text)
    if options.reduced:
        return
    kept: dict[str, float] = json.loads(KEPT.read_text(encoding="utf-8"))["ratios"] if KEPT.exists() else {}
    lines = moved(found, kept)
    print("\n" + ("\n".join(lines) if lines else f"Nothing moved by more than {MOVED:.0%} against {KEPT.name}."))
    if options.write:
        ratios = {**kept, **{row.name: round(row.ratio, 3) for row in found}}
        told = {"machine": machine(), "ratios": dict(sorted(ratios.items()))}
        KEPT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        name = "-".join(["bench", *(options.only if options.only != list(_SETS) else [])])
        head = f"# Our kernels against their peers, {date.today().isoformat()}\n\n`python benchmarks/bench.py` on "
        page = KEPT.parent / "results" / f"{date.today().isoformat()}-{name}.md"
        page.write_text(f"{head}{text}\n", encoding="utf-8")
    elif lines:
        sys.exit(1)


if __name__ == "__main__":
    main()
