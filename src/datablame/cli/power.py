"""The command `datablame power`: what a design can show, before anything is trained."""

from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table

from datablame.cli.console import say_text
from datablame.engine.execute import Progress
from datablame.errors import RequestError
from datablame.report.wording import interval, percent
from datablame.seeds import stream_key
from datablame.stats import power as designs
from datablame.stats.arm_tests import smallest_p
from datablame.stats.intervals import Share
from datablame.stats.power import LEVEL, MOST_TRIED, Design

_LARGEST = {"prompts": 10_000, "samples": 10_000, "seeds": 100, "holm": 100, "simulations": 100_000}
_LEAST = {"simulations": 100}
_WIDEST = 5.0
"""Logits; five of them turn 1 % into 60 %."""
_NAIVE_AND_OURS = (
    "naive: z over all samples",
    "naive: paired t over prompts",
    "permutation over trainings",
    "t over prompts and trainings",
)
"""In words, the tests of `Rejections`."""


class Answer(NamedTuple):
    """The simulated design and the cheapest one that would do."""

    design: Design
    power: designs.Power
    cheapest: designs.Cheapest | None
    candidates: int
    training_cost: float


def checked(
    from_rate: float,
    to_rate: float,
    counts: Mapping[str, int],
    deviations: Mapping[str, float],
    training_cost: float,
    simulations: int,
) -> Design:
    """The design that the options describe: `counts` and `deviations` by the names of their options.

    Raises:
        RequestError: an option's value cannot be simulated.
    """

    def within(name: str, n: int) -> tuple[str, int, bool, str]:
        least, most = _LEAST.get(name, 1), _LARGEST[name]
        return name, n, least <= n <= most, f"is not between {least} and {most:,}; choose a number there"

    rules = (
        ("from", from_rate, 0 < from_rate < 1, "is not above 0 and below 1; give the rate as a share, .10 for 10 %"),
        ("to", to_rate, 0 <= to_rate < 1, "is not at least 0 and below 1; give the rate as a share, .05 for 5 %"),
        ("to", to_rate, from_rate != to_rate, "equals --from, so that there is nothing to find; give another rate"),
        *(within(name, n) for name, n in counts.items()),
        *(
            (f"{name}-deviation", logits, 0 <= logits <= _WIDEST, f"is not between 0 and {_WIDEST:g} logits; lower it")
            for name, logits in deviations.items()
        ),
        ("training-cost", training_cost, 0 <= training_cost < inf, "is not a number of outputs; give 0 or more"),
        within("simulations", simulations),
    )
    for option, value, possible, problem in rules:
        if not possible:
            raise RequestError(f"--{option} {value if isinstance(value, int) else f'{value:g}'} {problem}")
    deviate: dict[str, Any] = {f"{name}_deviation": logits for name, logits in deviations.items()}
    return Design(from_rate, to_rate, counts["prompts"], counts["samples"], counts["seeds"], counts["holm"], **deviate)


def answer(design: Design, training_cost: float, simulations: int, progress: Progress) -> Answer:
    """Simulate the design, then look for the cheapest one; the same request gives the same numbers."""
    key = stream_key("power")
    progress.start("simulated studies", simulations)
    power = designs.simulate(design, simulations, key, progress.advance)
    others = designs.candidates(design, training_cost)
    progress.start("designs, cheapest first", min(len(others), MOST_TRIED))
    cheapest = designs.cheapest(others, simulations, key, progress.advance)
    return Answer(design, power, cheapest, len(others), training_cost)


def as_json(result: Answer) -> dict[str, Any]:
    """Everything as numbers."""
    design, power, best = result.design, result.power, result.cheapest

    def described(design: Design) -> dict[str, Any]:
        cost = designs.cost(design, result.training_cost)
        counts = {"trainings": design.trainings, "outputs": design.outputs, "cost": cost}
        return {**asdict(design), "reference_seeds": design.references, **counts}

    def shares(tests: designs.Rejections) -> dict[str, Any]:
        return {name: share and share._asdict() for name, share in tests._asdict().items()}

    return {
        "design": described(design),
        "power": power.power._asdict(),
        "any_false_alarm": power.any_false_alarm._asdict(),
        "smallest_p": smallest_p(design.seeds, design.references),
        "smallest_adjusted_p": designs.smallest_adjusted_p(design),
        "without_effect": shares(power.without_effect),
        "with_effect": shares(power.with_effect),
        "simulations": power.simulations,
        "cheapest": best and {**described(best.design), "power": best.power.power._asdict()},
    }


def show(result: Answer, console: Console) -> None:
    """Print the answer for people."""
    design, power = result.design, result.power
    floor = {"least": smallest_p(design.seeds, design.references), "adjusted": designs.smallest_adjusted_p(design)}
    values = {**floor, "cost": designs.cost, "level": LEVEL, "most_tried": MOST_TRIED}
    say_text(console, "power_head", result=result, share=_share, words=_words, **values)
    shares = (Column(name, justify="right", no_wrap=True) for name in ("false alarms", "effect found"))
    title = (
        f"Share with p < {LEVEL:g} of {power.simulations:,} simulated studies, [95 % Monte-Carlo error]. "
        f"The first four tests compare one method with random."
    )
    table = Table("test", *shares, title=title, title_justify="left")
    for name, *rejections in zip(_NAIVE_AND_OURS, power.without_effect, power.with_effect, strict=True):
        table.add_row(name, *map(_share, rejections))
    ours = f"datablame: permutation against random and baseline, Holm over {design.methods}"
    table.add_row(ours, _share(power.any_false_alarm), _share(power.power))
    console.print(table)
    say_text(console, "power_tail", result=result, share=_share, words=_words, **values)


def _words(design: Design) -> str:
    return f"{design.prompts} prompts x {design.samples} samples x {design.seeds} seeds"


def _share(share: Share | None) -> str:
    return "-" if share is None else f"{percent(share.rate)} {interval(share.low, share.high)}"
