"""The plan as people read it: a few tables, every number an upper bound unless it says otherwise."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from datablame.cli.console import say, say_text
from datablame.plan.build import Plan
from datablame.plan.memory import CARD, Memory


def show(plan: Plan, console: Console) -> None:
    """Print the plan."""
    words = {"gb": _gb, "hours": _hours}
    say_text(console, "plan_head", plan=plan, **words)
    for title, columns, rows, caption in _tables(plan):
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column in (columns[0], "mostly", "method") else "right")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, str) else f"{cell:,}" for cell in row))
        console.print(table)
        console.print()
    say_text(console, "plan_tail", plan=plan, **words)
    if plan.cautions:
        say(console, "", *(f"warning: {caution}" for caution in plan.cautions), style="yellow")


def _tables(plan: Plan) -> Iterator[tuple[str, Sequence[str], Iterable[Sequence[str | int]], str | None]]:
    """Titles, columns, rows and captions."""
    counts, reading = plan.counts, plan.counts.attribution
    least, most = counts.focus
    yield (
        "Sampling",
        ("phase", "cells", "outputs", "tokens", "of them with before"),
        ((name, *getattr(counts, name)) for name in ("scan", "surface", "patch")),
        f"cell: one model, prompt and alpha; the scan brings {least if least >= most else f'{least} to {most}'} "
        "prompts into focus",
    )
    yield (
        "Patching",
        ("protocol", "arms", "seeds", "trainings", "method", "documents seen", "tokens at most"),
        (
            (
                each.protocol,
                *map(str, (each.arms, each.seeds, each.trainings)),
                each.method,
                each.documents,
                each.tokens,
            )
            for each in counts.trainings
        ),
        "arms that are trained, an arm once for each K; the arm after is the after model itself",
    )
    passed = {"gradients": reading.gradient_documents, "activations": reading.activation_documents}
    yield (
        "Attribution",
        ("what", "at most"),
        [
            ("behaviours with something to trace", str(reading.behaviours)),
            ("harmful outputs traced", str(reading.queries)),
            ("BM25 candidates for each behaviour", reading.candidates),
            *((f"documents passed for {of}", "the whole pool" if n is None else n) for of, n in passed.items()),
        ],
        None,
    )
    if plan.memory is None or plan.card_memory is None:
        return
    rows = []
    for phase, card in plan.card_memory.items():
        largest = sorted(card.parts.items(), key=lambda part: -part[1])[:3]
        mostly = ", ".join(f"{part} {_gb(size)}" for part, size in largest)
        rows.append((phase, _needed(plan.memory[phase]), _needed(card), mostly))
    caption = "estimated from the configs (docs/explanation/memory-and-cost.md); the last column is the card's"
    if beside := plan.card_memory["attribute"].beside_bytes:
        caption += f"; attribute keeps {_gb(beside)} of directions in the machine's own memory beside it"
    columns = ("phase", f"here ({plan.device.size})", f"{_gb(CARD.memory_bytes)} card", "mostly")
    yield "Peak memory", columns, rows, caption


def _needed(memory: Memory) -> str:
    return f"{_gb(memory.bytes)}{'' if memory.fits else ', too much'}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
