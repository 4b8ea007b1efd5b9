"""Time against the number of documents and of samples, which must be linear; the plot of docs/performance.md.

    python benchmarks/growth.py             # a quarter of an hour on two cores; nothing else should run
    python benchmarks/growth.py --write     # and keep table and plot in benchmarks/results/DATE-growth.{md,png}
    python benchmarks/growth.py --reduced   # a minute, at sizes that say nothing, to see that it runs

Documents are scored by gradient similarity, every number of them in a process of its own; samples are drawn from two
models. Both at the shape named, relative to the first point of each.
"""

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import gradients
import sampler
from measure import Amount, machine

RESULTS = Path(__file__).parent / "results"


def drawn(documents: Sequence[tuple[int, float]], samples: Sequence[tuple[int, float]], path: Path) -> None:
    """Both curves on logarithmic axes, each beside the line through its first point."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, points, what in zip(axes, (documents, samples), ("documents scored", "samples drawn"), strict=True):
        counts, seconds = zip(*points, strict=True)
        axis.loglog(counts, [seconds[0] * n / counts[0] for n in counts], "--", color="0.6", label="linear")
        axis.loglog(counts, seconds, "o-", color="C0", label="measured")
        axis.set(xlabel=what, ylabel="CPU seconds")
        axis.set_xticks(counts, [f"{n:,}" for n in counts])
        axis.set_yticks(seconds, [f"{each:.3g}" for each in seconds])
        axis.minorticks_off()
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def page(documents: Sequence[tuple[int, float]], samples: Sequence[tuple[int, float]]) -> str:
    """The two tables."""
    parts = [machine()]
    for points, what in ((documents, "documents"), (samples, "samples")):
        first = points[0][1] / points[0][0]
        lines = [f"| {n:,} | {seconds:.2f} | {seconds / n / first:.2f} |" for n, seconds in points]
        parts.append(
            "\n".join([f"| {what} | CPU seconds | each, relative to the first row |", "|---:|---:|---:|", *lines])
        )
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--write", action="store_true", help="keep table and plot in benchmarks/results")
    options = parser.parse_args()
    amount: Amount = "reduced" if options.reduced else "full"
    documents = [(n, times.cpu) for n, times in gradients.grown(amount)[0].items()]
    samples = sampler.growth(sampler.SIZES[amount])
    text = page(documents, samples)
    print(text)
    if options.write:
        name = f"{date.today().isoformat()}-growth"
        drawn(documents, samples, RESULTS / f"{name}.png")
        head = f"# Time against documents and samples, {date.today().isoformat()}\n\n`python benchmarks/growth.py` on "
        what = f"Documents: {gradients.SMALL.name}; samples: {sampler.SIZES[amount].shape.name}'s shape."
        plot = f"![CPU seconds against documents and against samples]({name}.png)"
        (RESULTS / f"{name}.md").write_text(f"{head}{text}\n\n{what}\n\n{plot}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
