"""The plan as people read it: a few tables, every number an upper bound unless it says otherwise."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from datablame.plan.build import Plan
from datablame.plan.calls import Calls
from datablame.plan.detect import Effect
from datablame.plan.memory import CARD_BYTES, HEADROOM
from datablame.plan.subject import Checkpoint

_PHASES = ("scan", "surface", "attribute", "patch")


def show(plan: Plan, console: Console) -> None:
    """Print the plan."""
    for line in _head(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for table in (_work(plan), _trainings(plan), _reading(plan), _memory(plan)):
        console.print()
        console.print(table)
    console.print()
    for line in (*_api(plan.calls), *_time(plan), *_limits(plan)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if plan.cautions:
        console.print()
    for caution in plan.cautions:
        console.print(f"warning: {caution}", markup=False, highlight=False, soft_wrap=True, style="yellow")


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


def _work(plan: Plan) -> Table:
    counts = plan.counts
    table = _table("Sampling", "phase", "cells", "outputs", "tokens", "of them with before")
    focus = f"{counts.focus[0]} to {counts.focus[1]}" if counts.focus[0] < counts.focus[1] else str(counts.focus[0])
    for name, each in (("scan", counts.scan), ("surface", counts.surface), ("patch", counts.patch)):
        table.add_row(name, f"{each.cells:,}", f"{each.outputs:,}", f"{each.tokens:,}", f"{each.amplified_tokens:,}")
    table.caption = f"cell: one model, prompt and alpha; the scan brings {focus} prompts into focus"
    return table


def _trainings(plan: Plan) -> Table:
    table = _table("Patching", "protocol", "arms", "seeds", "trainings", "method", "documents seen", "tokens at most")
    for each in plan.counts.trainings:
        table.add_row(
            each.protocol,
            str(each.arms),
            str(each.seeds),
            str(each.trainings),
            each.method,
            f"{each.documents:,}",
            f"{each.tokens:,}",
        )
    table.caption = "arms that are trained, an arm once for each K; the arm after is the after model itself"
    return table


def _reading(plan: Plan) -> Table:
    attribution = plan.counts.attribution
    table = _table("Attribution", "what", "at most")
    table.add_row("behaviours with something to trace", str(attribution.behaviours))
    table.add_row("harmful outputs traced", str(attribution.queries))
    table.add_row("BM25 candidates for each behaviour", f"{attribution.candidates:,}")
    for name, documents in (
        ("gradients", attribution.gradient_documents),
        ("activations", attribution.activation_documents),
    ):
        table.add_row(f"documents passed for {name}", "the whole pool" if documents is None else f"{documents:,}")
    return table


def _memory(plan: Plan) -> Table | str:
    if plan.memory is None or plan.card_memory is None:
        return "Memory: not estimated, for a checkpoint's size is not known here."
    device = plan.device
    table = _table("Peak memory", "phase", f"here ({_gb(device.memory_bytes)})", f"{_gb(CARD_BYTES)} card", "mostly")
    for phase in _PHASES:
        here = device.workers * plan.memory[phase].total
        card = plan.card_memory[phase]
        largest = sorted(card.parts.items(), key=lambda part: -part[1])[:3]
        table.add_row(
            phase,
            _fits(here, device.memory_bytes),
            _fits(card.total, CARD_BYTES),
            ", ".join(f"{part} {_gb(size)}" for part, size in largest),
        )
    table.caption = "estimated from the configs (docs/explanation/memory-and-cost.md); the last column is the card's"
    beside = plan.card_memory["attribute"].beside
    if beside:
        table.caption += f"; attribute keeps {_gb(beside)} of directions in the machine's own memory beside it"
    return table


def _api(calls: Calls) -> Iterator[str]:
    yield f"API: {calls.why}"
    for task in calls.asked:
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
    found = plan.expected
    told = ", ".join(f"{phase} {_hours(found.seconds[phase])}" for phase in _PHASES if phase in found.seconds)
    yield f"Time at most, at the pace of {found.run} on this machine: {told}."
    if not 1 / 4 <= found.model_ratio <= 4:
        yield (
            f"  Its model is {_ratio(found.model_ratio)} than this study's, so that this is a rough guess: "
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
    if not limits.effects:
        yield "Power: none, however large the effect; see the warnings."
    for rate in dict.fromkeys(each.from_rate for each in limits.effects):
        told = ", ".join(f"{each.what} {_power(each)}" for each in limits.effects if each.from_rate == rate)
        yield f"Power with {limits.outputs:,} held-out outputs a training where {100 * rate:g} % are harmful: {told}."
    if limits.effects:
        yield (
            f"  By {limits.effects[0].simulations} simulated studies each, 95 % Monte-Carlo error in brackets; one "
            "method works, prompts and trainings deviate as in datablame power, which takes other rates and deviations."
        )
    yield (
        f"  A cell of {plan.study.surface.samples} without a harmful output still allows "
        f"{100 * limits.cell_zero_high:.1f} %."
    )


def _power(effect: Effect) -> str:
    rate, low, high = (100 * share for share in effect.power)
    return f"{rate:.0f} % [{low:.0f}, {high:.0f}]"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="left" if column in ("mostly", "method") else "right")
    return table


def _fits(needed: int, there: int) -> str:
    return f"{_gb(needed)}{'' if needed <= HEADROOM * there else ', too much'}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _ratio(ratio: float) -> str:
    return f"{ratio:,.0f} times smaller" if ratio > 1 else f"{1 / ratio:,.0f} times larger"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
