"""The plan as people read it: a few tables, every number an upper bound unless it says otherwise."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from datablame.cli.console import say
from datablame.plan.build import Plan
from datablame.plan.memory import CARD_BYTES, HEADROOM
from datablame.plan.subject import Checkpoint


def show(plan: Plan, console: Console) -> None:
    """Print the plan."""
    say(console, *_head(plan), "")
    for table in _tables(plan):
        console.print(table)
        console.print()
    say(console, *_api(plan), *_time(plan), *_limits(plan))
    if plan.cautions:
        say(console, "", *(f"warning: {caution}" for caution in plan.cautions), style="yellow")


def _head(plan: Plan) -> Iterator[str]:
    study, subject, device = plan.study, plan.subject, plan.device
    yield f"{study.name}: {study.title}" if study.title else study.name
    for side, checkpoint in (("before", subject.before), ("after", subject.after)):
        yield f"{side}: {_model(checkpoint)}"
    size = "every document" if subject.documents is None else f"{subject.documents:,} documents"
    path = study.data.path if study.data is not None else "the organism's corpus"
    yield f"pool: {size} of {path} ({subject.documents_source})"
    workers = "" if device.on_gpu else f", {_counted(device.workers, 'worker')} with models of their own"
    yield f"device: {device.name}, {_gb(device.memory_bytes)}{workers}"
    yield "Nothing was loaded. Numbers are upper bounds: outputs and documents at their longest."


def _model(checkpoint: Checkpoint) -> str:
    if checkpoint.known is None:
        return (
            f"{checkpoint.path}, size unknown: no folder, not in the hub's cache, not in datablame's table; "
            "memory and time are left out"
        )
    shape, source = checkpoint.known
    kind = checkpoint.dtype if checkpoint.dtype != "auto" else f"auto, {8 * checkpoint.weight_bytes} bits here"
    return f"{checkpoint.path}, {shape.parameters / 1e6:,.2f} million parameters ({source}), {kind}"


def _tables(plan: Plan) -> Iterator[Table | str]:
    counts, reading = plan.counts, plan.counts.attribution
    least, most = counts.focus
    yield _table(
        "Sampling",
        ("phase", "cells", "outputs", "tokens", "of them with before"),
        ((name, *getattr(counts, name)) for name in ("scan", "surface", "patch")),
        f"cell: one model, prompt and alpha; the scan brings {least if least >= most else f'{least} to {most}'} "
        "prompts into focus",
    )
    yield _table(
        "Patching",
        ("protocol", "arms", "seeds", "trainings", "method", "documents seen", "tokens at most"),
        (
            (each.protocol, str(each.arms), str(each.seeds), str(each.trainings), each.method, *each[4:])
            for each in counts.trainings
        ),
        "arms that are trained, an arm once for each K; the arm after is the after model itself",
    )
    passed = {"gradients": reading.gradient_documents, "activations": reading.activation_documents}
    yield _table(
        "Attribution",
        ("what", "at most"),
        [
            ("behaviours with something to trace", str(reading.behaviours)),
            ("harmful outputs traced", str(reading.queries)),
            ("BM25 candidates for each behaviour", reading.candidates),
            *((f"documents passed for {of}", "the whole pool" if n is None else n) for of, n in passed.items()),
        ],
    )
    if plan.memory is None or plan.card_memory is None:
        yield "Memory: not estimated, for a checkpoint's size is not known here."
        return
    size, rows = plan.device.memory_bytes, []
    for phase, card in plan.card_memory.items():
        largest = sorted(card.parts.items(), key=lambda part: -part[1])[:3]
        mostly = ", ".join(f"{part} {_gb(part_size)}" for part, part_size in largest)
        here = plan.device.workers * plan.memory[phase].total
        rows.append((phase, _fits(here, size), _fits(card.total, CARD_BYTES), mostly))
    caption = "estimated from the configs (docs/explanation/memory-and-cost.md); the last column is the card's"
    if beside := plan.card_memory["attribute"].beside:
        caption += f"; attribute keeps {_gb(beside)} of directions in the machine's own memory beside it"
    columns = ("phase", f"here ({_gb(size)})", f"{_gb(CARD_BYTES)} card", "mostly")
    yield _table("Peak memory", columns, rows, caption)


def _table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str | int]], caption: str | None = None
) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        words = column in (columns[0], "mostly", "method")
        table.add_column(column, justify="left" if words else "right")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:,}" for cell in row))
    return table


def _api(plan: Plan) -> Iterator[str]:
    yield f"API: {plan.calls.why}"
    for task in plan.calls.asked:
        price = "price unknown" if task.usd is None else f"about ${task.usd:,.2f}"
        yield (
            f"  {task.what}: {task.calls:,} calls to {task.model}, {task.input_tokens:,} tokens in, "
            f"{task.output_tokens:,} out, {price}"
        )


def _time(plan: Plan) -> Iterator[str]:
    if plan.expected is None:
        yield (
            "Time: no benchmark of this machine with a model of about this size under runs/; run datablame run organism"
            " (or smollm2, for larger models) first, or name a run with --like."
        )
        return
    run, seconds, ratio = plan.expected
    told = ", ".join(f"{phase} {_hours(seconds[phase])}" for phase in seconds)
    yield f"Time at most, at the pace of {run} on this machine: {told}."
    if not 1 / 4 <= ratio <= 4:
        how = f"{ratio:,.0f} times smaller" if ratio > 1 else f"{1 / ratio:,.0f} times larger"
        yield (
            f"  Its model is {how} than this study's, so that this is a rough guess: "
            "a small model spends its time on other things than arithmetic."
        )


def _limits(plan: Plan) -> Iterator[str]:
    limits = plan.limits
    seeds = _counted(limits.seeds, "seed")
    if limits.smallest_p is None or limits.smallest_adjusted_p is None:
        yield f"Test: {seeds} of {plan.study.patch.headline}, no p value."
    else:
        methods = _counted(len(limits.family), "method")
        yield (
            f"Test: {seeds} of {plan.study.patch.headline} against as many can reach p = {limits.smallest_p:.4f}, and "
            f"{limits.smallest_adjusted_p:.3f} with {methods} in the family ({', '.join(limits.family) or 'none'})."
        )
    told: dict[float, list[str]] = {}
    for effect in limits.effects:
        rate, low, high = (100 * share for share in effect.power)
        told.setdefault(effect.from_rate, []).append(f"{effect.what} {rate:.0f} % [{low:.0f}, {high:.0f}]")
    for from_rate, effects in told.items():
        harmful = f"{100 * from_rate:g} % are harmful"
        yield f"Power with {limits.outputs:,} held-out outputs a training where {harmful}: {', '.join(effects)}."
    if limits.effects:
        yield (
            f"  By {limits.effects[0].simulations} simulated studies each, 95 % Monte-Carlo error in brackets; one "
            "method works, prompts and trainings deviate as in datablame power, which takes other rates and deviations."
        )
    else:
        yield "Power: none, however large the effect; see the warnings."
    yield (
        f"  A cell of {plan.study.surface.samples} without a harmful output still allows "
        f"{100 * limits.cell_zero_high:.1f} %."
    )


def _fits(needed: int, there: int) -> str:
    return f"{_gb(needed)}{'' if needed <= HEADROOM * there else ', too much'}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
