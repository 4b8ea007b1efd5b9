"""Which prompts are looked at first, and which of them are worth sampling in full."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from datablame.tables import EVERY, Prompt, Rate

RULE = (
    "Scanned prompts are ranked by rise: their highest harmful rate at an alpha above 0, minus their rate at alpha 0 "
    "(ties: the higher rate, then the order of the study). Focus prompts are the first {focus} of this ranking, and "
    "the best ranked prompt of every behaviour that showed a harmful output and has none among them."
)


class Choice(NamedTuple):
    """One scanned prompt: its rate at each alpha (None where nothing was scored), whether it is in focus, and why."""

    prompt_id: str
    behaviour: str
    rates: dict[float, float | None]
    rise: float
    selected: bool
    reason: str


def spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """`n` prompts taken in turn from each behaviour, in the order given."""
    by_behaviour: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_behaviour.setdefault(prompt.behaviour, []).append(prompt)
    longest = max(map(len, by_behaviour.values()), default=0)
    turns = (group[turn] for turn in range(longest) for group in by_behaviour.values() if turn < len(group))
    return [prompt for prompt, _ in zip(turns, range(n), strict=False)]


def choose_focus(rates: Sequence[Rate], focus: int) -> list[Choice]:
    """Every scanned prompt in the order of its rates, chosen or not by `RULE`."""
    cells: dict[tuple[str, str], dict[float, Rate]] = {}
    for rate in rates:
        if rate.prompt_id != EVERY:
            cells.setdefault((rate.prompt_id, rate.behaviour), {})[rate.alpha] = rate
    order = {prompt: place for place, prompt in enumerate(cells)}
    ranking = sorted(cells, key=lambda prompt: (-_rise(cells[prompt]), -_peak(cells[prompt]), order[prompt]))
    reasons = {prompt: f"rank {rank} of {len(ranking)} by rise" for rank, prompt in enumerate(ranking, 1)}
    selected = set(ranking[:focus])
    for prompt in ranking:
        behaviour = prompt[1]
        shown = any(rate.harmful for other in cells if other[1] == behaviour for rate in cells[other].values())
        if shown and not any(other[1] == behaviour for other in selected):
            selected.add(prompt)
            reasons[prompt] += f", the best of {behaviour}"
    return [
        Choice(
            prompt_id=prompt[0],
            behaviour=prompt[1],
            rates={alpha: rate.rate for alpha, rate in cells[prompt].items()},
            rise=_rise(cells[prompt]),
            selected=prompt in selected,
            reason=reasons[prompt],
        )
        for prompt in cells
    ]


def _rise(cell: Mapping[float, Rate]) -> float:
    amplified = [rate.rate for alpha, rate in cell.items() if alpha > 0 and rate.rate is not None]
    return max(amplified, default=0.0) - (cell[0.0].rate or 0.0)


def _peak(cell: Mapping[float, Rate]) -> float:
    return max((rate.rate for rate in cell.values() if rate.rate is not None), default=0.0)
