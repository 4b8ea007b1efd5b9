"""Every method's place by every measure, over the organisms of a leaderboard."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from datablame.leaderboard.lds import Scores
from datablame.leaderboard.results import Entry, Result, values
from datablame.leaderboard.studies import Organism
from datablame.stats import standings as measures
from datablame.stats.intervals import Interval
from datablame.stats.standings import Estimate

COSTS = ("seconds", "peak_mb")
MEASURES = ("drop", "average_precision", "precision_at_k", "rate_at_0", *COSTS)
EFFECT, DETECTION = "drop", "average_precision"


class Halving(NamedTuple):
    """Removed documents that halve the rate: the median over organisms, infinite where most are censored."""

    median: float
    interval: Interval | None
    censored: int
    n: int
    most: int
    """The most documents that were removed anywhere."""


@dataclass(frozen=True)
class Standing:
    """One method over all organisms."""

    entry: Entry
    estimates: Mapping[str, Estimate]
    """By measure, where there is a number."""
    ranks: Mapping[str, int]
    """By effect and by detection: 1 + the methods that beat it on the organisms that both have."""
    mean_ranks: Mapping[str, Estimate]
    beats_not: tuple[str, ...]
    """Controls that it does not beat in effect; its own name is not among them."""
    halving: Halving | None
    is_pareto: bool
    """Whether no method that has all of its organisms has more effect for fewer seconds."""
    by_kind: Mapping[str, Estimate]
    """Effect, by kind."""
    missing: Mapping[str, int]
    """Why organisms on which others have rates have no number for its effect, or no scores for all of their behaviours,
    with how many."""
    lds: tuple[float, Interval] | None


@dataclass(frozen=True)
class Leaderboard:
    """All of it: what ran, what came out."""

    organisms: Sequence[Organism]
    kinds: Mapping[str, str]
    """What each kind is."""
    k: int
    ks: Sequence[int]
    results: Sequence[Result]
    standings: Sequence[Standing]
    """By rank in effect, those with a value on half of the organisms first, then by its mean; without any last."""
    failures: Mapping[Organism, str]
    lds_of: Organism | None
    """The organism of the LDS; None where there is none."""
    subsets: int

    @property
    def silent(self) -> dict[Organism, str]:
        """Organisms on which no method has a rate, with why."""
        return _silent(self.results)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the organisms."""
        return list(dict.fromkeys(organism.seed for organism in self.organisms))


def standings_of(entries: Sequence[Entry], results: Sequence[Result], lds: Scores) -> list[Standing]:
    """Every entry's standing, the best first."""
    by_measure = {name: values(results, name) for name in MEASURES}
    effect = by_measure[EFFECT]
    ranks = {name: measures.ranks(by_measure[name]) for name in (EFFECT, DETECTION)}
    mean_ranks = {name: measures.mean_ranks(by_measure[name]) for name in (EFFECT, DETECTION)}
    controls = [entry.name for entry in entries if entry.control and effect.get(entry.name)]
    estimates = {
        entry.name: {
            name: made
            for name, of in by_measure.items()
            if (made := (measures.median if name in COSTS else measures.over_seeds)(of.get(entry.name, {}))) is not None
        }
        for entry in entries
    }
    best = measures.pareto(by_measure["seconds"], effect)
    kinds = list(dict.fromkeys(row.kind for row in results))
    standings, silent = [], _silent(results)
    for entry in entries:
        own, rows = effect.get(entry.name, {}), [row for row in results if row.method == entry.name]
        by_kind = {
            kind: measures.over_seeds({organism: value for organism, value in own.items() if organism[0] == kind})
            for kind in kinds
        }
        missing = Counter(
            reason for row in rows if Organism(row.kind, row.seed) not in silent for reason in _reasons(row)
        )
        standings.append(
            Standing(
                entry,
                estimates[entry.name],
                {name: of[entry.name] for name, of in ranks.items() if entry.name in of},
                {name: of[entry.name] for name, of in mean_ranks.items() if entry.name in of},
                tuple(c for c in controls if c != entry.name and not measures.beats(own, effect.get(c, {}))),
                _halving(rows),
                entry.name in best,
                {kind: of for kind, of in by_kind.items() if of is not None},
                missing,
                lds.get(entry.name),
            )
        )
    most = max((each.estimates[EFFECT].n for each in standings if EFFECT in each.estimates), default=0)
    return sorted(standings, key=partial(_place, most))


def _silent(results: Sequence[Result]) -> dict[Organism, str]:
    by_organism: dict[Organism, list[Result]] = {}
    for row in results:
        by_organism.setdefault(Organism(row.kind, row.seed), []).append(row)
    return {
        organism: next((row.why for row in rows if row.behaviours), rows[0].why).partition("; ")[0]
        for organism, rows in by_organism.items()
        if all(row.rate is None for row in rows)
    }


def _reasons(row: Result) -> Iterator[str]:
    if row.drop is None:
        yield row.why.partition("; ")[0]
    elif row.scored < row.behaviours:
        yield "no scores for some behaviours"


def _halving(rows: Sequence[Result]) -> Halving | None:
    known = [row.halved_at for row in rows if row.halved_at is not None]
    if not known:
        return None
    most = max(row.most_removed for row in rows if row.most_removed is not None)
    return Halving(*measures.median_interval(known), sum(map(math.isinf, known)), len(known), most)


def _place(most: int, standing: Standing) -> tuple[float, bool, float, str]:
    estimate = standing.estimates.get(EFFECT)
    if estimate is None:
        return math.inf, True, math.inf, standing.entry.name
    return standing.ranks[EFFECT], estimate.n < most / 2, -estimate.value, standing.entry.name


def as_json(board: Leaderboard) -> dict[str, Any]:
    """Everything that results.json says; infinite numbers, which JSON has not, are null beside the count of them."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    def halving(of: Halving | None) -> dict[str, Any] | None:
        if of is None:
            return None
        ends = None if of.interval is None else [finite(of.interval.low), finite(of.interval.high)]
        return {"median": finite(of.median), "interval": ends, **{n: getattr(of, n) for n in ("censored", "n", "most")}}

    def standing(of: Standing) -> dict[str, Any]:
        about = {name: getattr(of.entry, name) for name in ("name", "label", "control", "cost")}
        return {
            **about,
            "estimates": {name: made._asdict() for name, made in of.estimates.items()},
            "ranks": dict(of.ranks),
            "mean_ranks": {name: made._asdict() for name, made in of.mean_ranks.items()},
            "beats_not": list(of.beats_not),
            "halving": halving(of.halving),
            "pareto": of.is_pareto,
            "by_kind": {name: made._asdict() for name, made in of.by_kind.items()},
            "missing": dict(of.missing),
            "lds": None if of.lds is None else {"score": of.lds[0], "low": of.lds[1].low, "high": of.lds[1].high},
        }

    return {
        "schema_version": 1,
        "kinds": dict(board.kinds),
        "seeds": board.seeds,
        "k": board.k,
        "ks": list(board.ks),
        "failures": {str(organism): why for organism, why in board.failures.items()},
        "lds": {"organism": None if board.lds_of is None else str(board.lds_of), "subsets": board.subsets},
        "standings": [standing(each) for each in board.standings],
    }
