"""Every comparison in one table, beside the ratios of the last committed run; each row is told as it is measured.

    python benchmarks/bench.py                # 20 minutes on two cores; nothing else should run
    python benchmarks/bench.py --full         # two hours: published shapes, more rounds, larger pools
    python benchmarks/bench.py --only lora    # some sets alone
    python benchmarks/bench.py --reduced      # minutes, at sizes that say nothing, to see that everything runs
    python benchmarks/bench.py --write        # keep the ratios as those to compare with, and results/DATE-bench.md

A ratio is ours over theirs in time, medians of interleaved rounds in one process: below 1 we are faster. What moved by
more than 15 % against `benchmarks/ratios.json` is printed and makes the exit code 1.
"""

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import bm25
import curvature
import demo
import gradients
import lora
import minhash
import sampler
from measure import MOVED, Amount, Row, line, machine, moved, table

KEPT = Path(__file__).parent / "ratios.json"
_SETS = {
    "demo": demo.rows,
    "sampler": sampler.rows,
    "gradients": gradients.rows,
    "curvature": curvature.rows,
    "lora": lora.rows,
    "bm25": bm25.rows,
    "duplicates": minhash.rows,
}


def main() -> None:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(_SETS), default=list(_SETS), help="these sets alone")
    parser.add_argument("--full", action="store_true", help="published shapes and more rounds")
    parser.add_argument("--reduced", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--write", action="store_true", help="keep these ratios as the ones to compare with")
    options = parser.parse_args()
    if options.reduced and options.write:
        parser.error("--reduced measures nothing worth keeping; leave out --write")
    amount: Amount = "reduced" if options.reduced else "full" if options.full else "quick"
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    ratios: dict[str, float] = kept["ratios"].get(amount, {})
    began, found = time.monotonic(), list[Row]()
    print(f"{machine()}\n\n{table([])}", flush=True)
    for name in options.only:
        for row in _SETS[name](amount):
            found.append(row)
            print(line(row), flush=True)
            if options.write:
                _keep(kept, amount, found, options.only, time.monotonic() - began)
    lines = [] if options.reduced else moved(found, ratios)
    print(f"\n{time.monotonic() - began:,.0f} s in all.")
    print("\n".join(lines) if lines else f"Nothing moved by more than {MOVED:.0%} against {KEPT.name}.")
    if lines and not options.write:
        sys.exit(1)


def _keep(kept: dict[str, Any], amount: Amount, found: list[Row], sets: list[str], seconds: float) -> None:
    """What is measured so far, in both files."""
    ratios = {**kept["ratios"].get(amount, {}), **{row.name: round(row.ratio, 3) for row in found}}
    told = {"machine": machine(), "ratios": {**kept["ratios"], amount: dict(sorted(ratios.items()))}}
    KEPT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    options = [*(["--full"] if amount == "full" else []), *(["--only", *sets] if sets != list(_SETS) else [])]
    name = "-".join(["bench", *(word.lstrip("-") for word in options if word != "--only")])
    command = " ".join(["python benchmarks/bench.py", *options])
    text = f"# Our kernels against their peers, {date.today().isoformat()}\n\n`{command}` on {machine()}, "
    text += f"{seconds:,.0f} s.\n\n{table(found)}\n"
    page = KEPT.parent / "results" / f"{date.today().isoformat()}-{name}.md"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
