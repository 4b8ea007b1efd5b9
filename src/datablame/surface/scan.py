"""Which prompts are looked at first, and which of them are worth sampling in full."""

from collections.abc import Mapping, Sequence

from datablame.tables import EVERY, Prompt, Rate, ScannedPrompt

RULE = (
    "Scanned prompts are ranked by rise: their highest harmful rate at an alpha above 0, minus their rate at alpha 0 "
    "(ties: the higher rate, then the order of the study). Focus prompts are the first {focus} of this ranking, and "
    "the best ranked prompt of every behaviour that showed a harmful output and has none among them."
)


def spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """`n` prompts taken in turn from each behaviour, in the order given."""
    by_behaviour: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_behaviour.setdefault(prompt.behaviour, []).append(prompt)
    longest = max(map(len, by_behaviour.values()), default=0)
    turns = (group[turn] for turn in range(longest) for group in by_behaviour.values() if turn < len(group))
    return [prompt for prompt, _ in zip(turns, range(n), strict=False)]


def choose_focus(rates: Sequence[Rate], focus: int) -> list[ScannedPrompt]:
    """Every scanned prompt in the order of its rates, in focus or not by `RULE`."""
    cells: dict[tuple[str, str], dict[float, Rate]] = {}
    for rate in rates:
        if rate.prompt_id != EVERY:
            cells.setdefault((rate.prompt_id, rate.behaviour), {})[rate.alpha] = rate
    # Sorting keeps the study's order of what is equal.
    ranking = sorted(cells, key=lambda prompt: (-_rise(cells[prompt]), -_highest(cells[prompt])))
    reasons = {prompt: f"rank {rank} of {len(ranking)} by rise" for rank, prompt in enumerate(ranking, 1)}
    selected = set(ranking[:focus])
    shown = {prompt[1] for prompt, cell in cells.items() if any(rate.harmful for rate in cell.values())}
    for prompt in ranking:
        behaviour = prompt[1]
        if behaviour in shown and not any(other[1] == behaviour for other in selected):
            selected.add(prompt)
            reasons[prompt] += f", the best of {behaviour}"
    return [
        ScannedPrompt(
            prompt_id=prompt[0],
            behaviour=prompt[1],
            alphas=tuple(cell),
            rates=tuple(rate.rate for rate in cell.values()),
            rise=_rise(cell),
            selected=prompt in selected,
            reason=reasons[prompt],
        )
        for prompt, cell in cells.items()
    ]


def _rise(cell: Mapping[float, Rate]) -> float:
    return _highest({alpha: rate for alpha, rate in cell.items() if alpha > 0}) - (cell[0.0].rate or 0.0)


def _highest(cell: Mapping[float, Rate]) -> float:
    return max((rate.rate for rate in cell.values() if rate.rate is not None), default=0.0)
