"""The command `datablame power`: what a design can show, before anything is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table

from datablame.cli.console import say
from datablame.engine.execute import Progress
from datablame.errors import RequestError
from datablame.report.wording import interval, percent
from datablame.seeds import stream_key
from datablame.stats.arm_tests import smallest_p
from datablame.stats.intervals import Share
from datablame.stats.power import (
    LEVEL,
    MOST_TRIED,
    Cheapest,
    Design,
    Power,
    Rejections,
    candidates,
    cheapest,
    cost,
    simulate,
    smallest_adjusted_p,
)

_LARGEST = {"prompts": 10_000, "samples": 10_000, "seeds": 100, "holm": 100}
_WIDEST = 5.0
"""Logits; five of them turn 1 % into 60 %."""
_FEWEST, _MOST = 100, 100_000
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
    power: Power
    cheapest: Cheapest | None
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
    rules = (
        (0 < from_rate < 1, f"--from {from_rate:g} is not above 0 and below 1; give the rate as a share, .10 for 10 %"),
        (0 <= to_rate < 1, f"--to {to_rate:g} is not at least 0 and below 1; give the rate as a share, .05 for 5 %"),
        (from_rate != to_rate, f"--to {to_rate:g} equals --from, so that there is nothing to find; give another rate"),
        *(
            (1 <= n <= _LARGEST[name], f"--{name} {n} is not between 1 and {_LARGEST[name]:,}; choose a number there")
            for name, n in counts.items()
        ),
        *(
            (0 <= logits <= _WIDEST, f"--{name}-deviation {logits:g} is not between 0 and {_WIDEST:g} logits; lower it")
            for name, logits in deviations.items()
        ),
        (
            0 <= training_cost < float("inf"),
            f"--training-cost {training_cost:g} is not a number of outputs; give 0 or more",
        ),
        (
            _FEWEST <= simulations <= _MOST,
            f"--simulations {simulations} is not between {_FEWEST} and {_MOST:,}; choose a number there",
        ),
    )
    for possible, problem in rules:
        if not possible:
            raise RequestError(problem)
    return Design(
        from_rate,
        to_rate,
        methods=counts["holm"],
        **{name: counts[name] for name in ("prompts", "samples", "seeds")},
        **{f"{name}_deviation": logits for name, logits in deviations.items()},  # type: ignore[arg-type]
    )


def answer(design: Design, training_cost: float, simulations: int, progress: Progress) -> Answer:
    """Simulate the design, then look for the cheapest one; the same request gives the same numbers."""
    key = stream_key("power")
    progress.start("simulated studies", simulations)
    power = simulate(design, simulations, key, progress.advance)
    others = candidates(design, training_cost)
    progress.start("designs, cheapest first", min(len(others), MOST_TRIED))
    found = cheapest(others, simulations, key, progress.advance)
    return Answer(design, power, found, len(others), training_cost)


def as_json(found: Answer) -> dict[str, Any]:
    """Everything as numbers."""
    design, power, best = found.design, found.power, found.cheapest

    def described(design: Design) -> dict[str, Any]:
        counts = {"trainings": design.trainings, "outputs": design.outputs, "cost": cost(design, found.training_cost)}
        return {**asdict(design), "reference_seeds": design.references, **counts}

    def shares(tests: Rejections) -> dict[str, Any]:
        return {name: share and share._asdict() for name, share in tests._asdict().items()}

    return {
        "design": described(design),
        "power": power.power._asdict(),
        "any_false_alarm": power.any_false_alarm._asdict(),
        "smallest_p": smallest_p(design.seeds, design.references),
        "smallest_adjusted_p": smallest_adjusted_p(design),
        "without_effect": shares(power.without_effect),
        "with_effect": shares(power.with_effect),
        "simulations": power.simulations,
        "cheapest": best and {**described(best.design), "power": best.power.power._asdict()},
    }


def show(found: Answer, console: Console) -> None:
    """Print the answer for people."""
    say(console, *_head(found), "")
    console.print(_tests(found))
    say(console, "", _advice(found))


def _head(found: Answer) -> Iterator[str]:
    design = found.design
    yield (
        f"Effect: {percent(design.from_rate)} to {percent(design.to_rate)} harmful; log odds deviate by "
        f"{design.prompt_deviation:g} over prompts, {design.seed_deviation:g} over trainings, "
        f"{design.interaction_deviation:g} over prompts within a training"
    )
    arms = f"random, baseline and {design.methods} method{'s' if design.methods > 1 else ''}"
    yield f"Design: {_words(design)}; {design.trainings} trainings ({arms}), {design.outputs:,} outputs"
    yield f"Power: {_share(found.power.power)} that the method that works has p < {LEVEL:g} after Holm"
    least = smallest_adjusted_p(design)
    yield (
        f"Smallest p: {smallest_p(design.seeds, design.references):.2g} with {design.seeds} against "
        f"{design.references} trainings, {least:.2g} after Holm over {design.methods}"
        + (f"; this design can never show anything at {LEVEL:g}, add seeds" if least >= LEVEL else "")
    )


def _tests(found: Answer) -> Table:
    shares = (Column(name, justify="right", no_wrap=True) for name in ("false alarms", "effect found"))
    table = Table(
        "test",
        *shares,
        title=f"Share with p < {LEVEL:g} of {found.power.simulations:,} simulated studies, [95 % Monte-Carlo error]. "
        f"The first four tests compare one method with random.",
        title_justify="left",
    )
    for name, *rejections in zip(_NAIVE_AND_OURS, found.power.without_effect, found.power.with_effect, strict=True):
        table.add_row(name, *map(_share, rejections))
    ours = f"datablame: permutation against random and baseline, Holm over {found.design.methods}"
    table.add_row(ours, _share(found.power.any_false_alarm), _share(found.power.power))
    return table


def _advice(found: Answer) -> str:
    model = f"cost: a training counts as {found.training_cost:g} outputs, prompts cost nothing"
    best, own_cost = found.cheapest, cost(found.design, found.training_cost)
    if best is None:
        tried = f"not one of the {MOST_TRIED} cheapest likely ones" if found.candidates else "the formula likes none"
        return (
            f"Cheapest design with 80 %: none among 4 to 20 trainings an arm, up to twice the prompts and 100 samples "
            f"({tried}); look for a larger effect or fewer methods ({model})"
        )
    return (
        f"Cheapest design with 80 %: {_words(best.design)}; {best.design.trainings} trainings, "
        f"{best.design.outputs:,} outputs, power {_share(best.power.power)}, cost "
        f"{cost(best.design, found.training_cost):,.0f} against {own_cost:,.0f} of the design above ({model})"
    )


def _words(design: Design) -> str:
    return f"{design.prompts} prompts x {design.samples} samples x {design.seeds} seeds"


def _share(share: Share | None) -> str:
    return "-" if share is None else f"{percent(share.rate)} {interval(share.low, share.high)}"
