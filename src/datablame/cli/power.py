"""The command `datablame power`: what a design can show, before anything is trained."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from datablame.engine.execute import Progress
from datablame.errors import RequestError
from datablame.seeds import stream_key
from datablame.stats.arm_tests import smallest_p
from datablame.stats.intervals import Share
from datablame.stats.power import (
    LEVEL,
    MOST_TRIED,
    Cheapest,
    Design,
    Power,
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


class Answer(NamedTuple):
    """The simulated design and the cheapest one that would do."""

    design: Design
    power: Power
    cheapest: Cheapest | None
    candidates: int
    training_cost: float


def checked(
    *,
    from_rate: float,
    to_rate: float,
    prompts: int,
    samples: int,
    seeds: int,
    holm: int,
    prompt_deviation: float,
    seed_deviation: float,
    interaction_deviation: float,
    training_cost: float,
    simulations: int,
) -> Design:
    """The design that the options describe.

    Raises:
        RequestError: an option's value cannot be simulated.
    """
    if not 0 < from_rate < 1:
        raise RequestError(f"--from {from_rate:g} is not above 0 and below 1; give the rate as a share, .10 for 10 %")
    if not 0 <= to_rate < 1:
        raise RequestError(f"--to {to_rate:g} is not at least 0 and below 1; give the rate as a share, .05 for 5 %")
    if from_rate == to_rate:
        raise RequestError(f"--to {to_rate:g} equals --from, so that there is nothing to find; give another rate")
    for name, value in {"prompts": prompts, "samples": samples, "seeds": seeds, "holm": holm}.items():
        if not 1 <= value <= _LARGEST[name]:
            raise RequestError(f"--{name} {value} is not between 1 and {_LARGEST[name]:,}; choose a number there")
    deviations = {"prompt": prompt_deviation, "seed": seed_deviation, "interaction": interaction_deviation}
    for name, deviation in deviations.items():
        if not 0 <= deviation <= _WIDEST:
            raise RequestError(f"--{name}-deviation {deviation:g} is not between 0 and {_WIDEST:g} logits; lower it")
    if not 0 <= training_cost < float("inf"):
        raise RequestError(f"--training-cost {training_cost:g} is not a number of outputs; give 0 or more")
    if not _FEWEST <= simulations <= _MOST:
        raise RequestError(f"--simulations {simulations} is not between {_FEWEST} and {_MOST:,}; choose a number there")
    return Design(
        from_rate=from_rate,
        to_rate=to_rate,
        prompts=prompts,
        samples=samples,
        seeds=seeds,
        methods=holm,
        prompt_deviation=prompt_deviation,
        seed_deviation=seed_deviation,
        interaction_deviation=interaction_deviation,
    )


def answer(design: Design, training_cost: float, simulations: int, progress: Progress) -> Answer:
    """Simulate the design, then look for the cheapest one; the same request gives the same numbers."""
    key = stream_key("power")
    progress.start("simulated studies", simulations)
    power = simulate(design, simulations, key, progress.advance)
    others = candidates(design, training_cost)
    progress.start("designs, cheapest first", min(len(others), MOST_TRIED))
    found = cheapest(others, training_cost, simulations, key, progress.advance)
    return Answer(design, power, found, len(others), training_cost)


def as_json(found: Answer) -> dict[str, Any]:
    """Everything as numbers."""
    best = found.cheapest
    return {
        "design": _design_json(found.design, found.training_cost),
        "power": found.power.power._asdict(),
        "any_false_alarm": found.power.any_false_alarm._asdict(),
        "smallest_p": smallest_p(found.design.seeds, found.design.references),
        "smallest_adjusted_p": smallest_adjusted_p(found.design),
        "without_effect": _tests_json(found.power.without_effect),
        "with_effect": _tests_json(found.power.with_effect),
        "simulations": found.power.simulations,
        "cheapest": None
        if best is None
        else {**_design_json(best.design, found.training_cost), "power": best.power.power._asdict()},
    }


def _design_json(design: Design, training_cost: float) -> dict[str, Any]:
    counts = {"trainings": design.trainings, "outputs": design.outputs, "cost": cost(design, training_cost)}
    return {**asdict(design), "reference_seeds": design.references, **counts}


def _tests_json(tests: Any) -> dict[str, Any]:
    return {name: share and share._asdict() for name, share in tests._asdict().items()}


def show(found: Answer, console: Console) -> None:
    """Print the answer for people."""
    for line in _head(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(_tests(found))
    console.print()
    for line in _advice(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _head(found: Answer) -> Iterator[str]:
    design = found.design
    yield (
        f"Effect: {_percent(design.from_rate)} to {_percent(design.to_rate)} harmful; log odds deviate by "
        f"{design.prompt_deviation:g} over prompts, {design.seed_deviation:g} over trainings, "
        f"{design.interaction_deviation:g} over prompts within a training"
    )
    yield f"Design: {_words(design)}; {design.trainings} trainings ({_arms(design)}), {design.outputs:,} outputs"
    yield f"Power: {_share(found.power.power)} that the method that works has p < {LEVEL:g} after Holm"
    least = smallest_adjusted_p(design)
    yield (
        f"Smallest p: {smallest_p(design.seeds, design.references):.2g} with {design.seeds} against "
        f"{design.references} trainings, {least:.2g} after Holm over {design.methods}"
        + (f"; this design can never show anything at {LEVEL:g}, add seeds" if least >= LEVEL else "")
    )


def _tests(found: Answer) -> Table:
    table = Table(
        title=f"Share with p < {LEVEL:g} of {found.power.simulations:,} simulated studies, [95 % Monte-Carlo error]. "
        f"The first four tests compare one method with random.",
        title_justify="left",
    )
    table.add_column("test")
    table.add_column("false alarms", justify="right", no_wrap=True)
    table.add_column("effect found", justify="right", no_wrap=True)
    none, some = found.power.without_effect, found.power.with_effect
    rows = [
        ("naive: z over all samples", none.samples, some.samples),
        ("naive: paired t over prompts", none.prompts, some.prompts),
        ("permutation over trainings", none.seeds, some.seeds),
        ("t over prompts and trainings", none.crossed, some.crossed),
    ]
    for name, without, with_effect in rows:
        table.add_row(name, _share(without), _share(with_effect))
    table.add_row(
        f"datablame: permutation against random and baseline, Holm over {found.design.methods}",
        _share(found.power.any_false_alarm),
        _share(found.power.power),
    )
    return table


def _advice(found: Answer) -> Iterator[str]:
    own = cost(found.design, found.training_cost)
    model = f"cost: a training counts as {found.training_cost:g} outputs, prompts cost nothing"
    best = found.cheapest
    if best is None:
        tried = f"not one of the {MOST_TRIED} cheapest likely ones" if found.candidates else "the formula likes none"
        yield (
            f"Cheapest design with 80 %: none among 4 to 20 trainings an arm, up to twice the prompts and 100 samples "
            f"({tried}); look for a larger effect or fewer methods ({model})"
        )
        return
    yield (
        f"Cheapest design with 80 %: {_words(best.design)}; {best.design.trainings} trainings, "
        f"{best.design.outputs:,} outputs, power {_share(best.power.power)}, cost {best.cost:,.0f} "
        f"against {own:,.0f} of the design above ({model})"
    )


def _words(design: Design) -> str:
    return f"{design.prompts} prompts x {design.samples} samples x {design.seeds} seeds"


def _arms(design: Design) -> str:
    return f"random, baseline and {design.methods} method{'s' if design.methods > 1 else ''}"


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{_percent(share.rate)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
