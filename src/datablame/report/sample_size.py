"""What a study without a verdict would have needed: seeds, prompts, samples, by simulation with its own numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from datablame.report.effects import REFERENCES, Effect
from datablame.report.results import Results
from datablame.report.wording import percent
from datablame.seeds import stream_key
from datablame.stats.crossed import deviations
from datablame.stats.power import TARGET, Cheapest, Power, approximate_power, candidates, cheapest, simulate
from datablame.stats.simulated import Design
from datablame.tables import ArmRate, ArmTest, Rise

_SIMULATIONS = 400
_LIKELY, _MOST_TRIED = 0.82, 6
"""Only designs that the formula holds for better than enough are simulated, so that the report takes seconds."""
_TRAINING_COST = 500.0
"""How many outputs cost as much as one training, as `datablame power` has it."""
_USUAL = {"prompt": 1.0, "seed": 0.25, "interaction": 0.1}
"""Logits: where a study's own table cannot tell, the defaults of `datablame power`."""
_TWO_SIDED, _FOUR_IN_FIVE = 1.959963984540054, 0.8416212335729143
"""Normal quantiles of a two-sided .05 and of .80."""


@dataclass(frozen=True)
class RequiredSampleSize:
    """The study's own design with its power, and the cheapest one that would do; deviations that are guessed named."""

    design: Design
    power: Power
    cheapest: Cheapest | None
    guessed: tuple[str, ...]
    largest: str | None
    """The method whose drop it is; None: it is the smallest drop that counts."""

    def sentence(self) -> str:
        """In words."""
        design, best = self.design, self.cheapest
        whose = f"{self.largest}'s own drop" if self.largest else "the smallest drop that counts"
        about = (
            f"To show {whose}, from {percent(design.from_rate)} to {percent(design.to_rate)}, with power "
            f"{100 * TARGET:.0f} % after Holm over {design.methods}"
        )
        if best is None:
            takes = "no design of up to 20 seeds, twice the prompts and 100 samples was found that would do"
        else:
            takes = f"it takes {_words(best.design)} (simulated power {percent(best.power.power.rate)})"
        guess = f"; {' and '.join(self.guessed)} deviation assumed, for one run cannot tell" if self.guessed else ""
        return f"{about}, {takes}; this study's {_words(design)} have {percent(self.power.power.rate)}{guess}."

    def as_json(self) -> dict[str, Any]:
        """Its numbers."""
        best = self.cheapest
        return {
            "design": _design(self.design),
            "power": self.power.power._asdict(),
            "simulations": self.power.simulations,
            "target": TARGET,
            "guessed": list(self.guessed),
            "method": self.largest,
            "cheapest": None if best is None else {**_design(best.design), "power": best.power.power._asdict()},
        }


def _words(design: Design) -> str:
    return f"{design.seeds} seeds x {design.prompts} prompts x {design.samples} samples"


def _design(design: Design) -> dict[str, Any]:
    return {**asdict(design), "reference_seeds": design.references}


def required_sample_size(results: Results, methods: Sequence[Effect]) -> RequiredSampleSize | None:
    """None where there is nothing to lower: no method was patched, or random removal leaves no harmful output.

    The rates are those of random removal and of the method with the largest drop, or the smallest drop that counts
    (`patch.margin`) where no method drops so far. Deviations are estimated from the arms that remove nothing or random
    documents. One stream of random numbers serves every design.
    """
    reference = results.of_role("random", results.headline)
    if not methods or reference is None:
        return None
    margin = results.study.patch.margin
    best = max(methods, key=lambda method: method.least_drop or 0.0)
    prompts, samples = reference.prompts, _samples(_cells(results, reference))
    if not reference.rate or best.rate is None or not prompts or not samples:
        return None
    outputs = prompts * samples * reference.seeds
    start = min(reference.rate, 1 - 0.5 / outputs)
    enough = best.dropped(margin)
    estimated = _deviations(results)
    design = Design(
        from_rate=start,
        to_rate=min(best.rate, start * (1 - margin)) if enough else start * (1 - margin),
        prompts=prompts,
        samples=samples,
        seeds=best.seeds,
        methods=len(methods),
        reference_seeds=reference.seeds,
        **{f"{name}_deviation": _USUAL[name] if value is None else value for name, value in estimated.items()},
    )
    key = stream_key("verdict", "power", results.study.seed)
    # The study has its prompts; fewer would not make it cheaper.
    others = [other for other in candidates(design, _TRAINING_COST) if other.prompts >= prompts]
    likely = [other for other in others if approximate_power(other) >= _LIKELY]
    return RequiredSampleSize(
        design=design,
        power=simulate(design, _SIMULATIONS, key),
        cheapest=cheapest(likely[:_MOST_TRIED], _TRAINING_COST, _SIMULATIONS, key),
        guessed=tuple(name for name, value in estimated.items() if value is None),
        largest=best.arm if enough else None,
    )


def prompts_for(rise: Rise) -> int | None:
    """Held-out prompts at which a rise as large as this one shows four times in five; None where nothing rose."""
    if rise.difference <= 0:
        return None
    return ceil(((_TWO_SIDED + _FOUR_IN_FIVE) * rise.deviation / rise.difference) ** 2)


def _samples(cells: Sequence[ArmRate]) -> int:
    return round(sum(cell.n for cell in cells) / len(cells)) if cells else 0


def _deviations(results: Results) -> Mapping[str, float | None]:
    tests = [results.of_role(role, results.headline) for role in reversed(REFERENCES)]
    counts = [_counts(_cells(results, test)) for test in tests if test is not None]
    return deviations([each for each in counts if each is not None])._asdict()


def _cells(results: Results, test: ArmTest) -> list[ArmRate]:
    """The cells of one arm where the verdict comes from."""
    return [
        cell
        for cell in results.comparison
        if (cell.arm, cell.protocol) == (test.arm, results.study.patch.headline)
        if (cell.split, cell.alpha) == ("held-out", results.alpha) and cell.k in (0, results.k)
    ]


def _counts(cells: Sequence[ArmRate]) -> tuple[list[list[int]], list[list[int]]] | None:
    """Harmful and scored as (seeds, prompts), of the prompts that were scored in every seed; None without any."""
    by_cell = {(cell.seed, cell.prompt_id): (cell.harmful, cell.n - cell.unscored) for cell in cells}
    seeds = sorted({seed for seed, _ in by_cell})
    prompts = sorted({prompt for _, prompt in by_cell})
    whole = [p for p in prompts if all(by_cell.get((seed, p), (0, 0))[1] for seed in seeds)]
    if not whole:
        return None
    harmful = [[by_cell[seed, p][0] for p in whole] for seed in seeds]
    return harmful, [[by_cell[seed, p][1] for p in whole] for seed in seeds]
