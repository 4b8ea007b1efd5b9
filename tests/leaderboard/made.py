"""A leaderboard of any size, made up."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from datablame.leaderboard.results import Entry, Result
from datablame.leaderboard.standings import Leaderboard, standings_of
from datablame.leaderboard.studies import Organism
from datablame.stats.intervals import Interval
from datablame.tables import look_of

KINDS = ("lexical", "paraphrased", "conceptual", "few", "many", "diluted", "source")


def made(
    methods: int,
    kinds: Sequence[str] = KINDS[:3],
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    labels: Mapping[int, str] = {},
    failures: Mapping[Organism, str] = {},
) -> Leaderboard:
    """Every third method is a control without an effect; the last method has no score for the last kind."""
    random = np.random.Generator(np.random.Philox(key=methods))
    entries = [
        Entry(f"method-{i}", labels.get(i, f"the method {i}"), i % 3 == 2, "forward", look_of(f"method-{i}"), False)
        for i in range(methods)
    ]
    organisms = [Organism(kind, seed) for kind in kinds for seed in seeds]
    results = []
    for i, entry in enumerate(entries):
        strength = 0.0 if entry.control else 1 - i / methods
        for organism in organisms:
            if organism in failures or (i == methods - 1 and organism.kind == kinds[-1]):
                results.append(Result(*organism, entry.name, why="no safe output to set the harmful ones against"))
                continue
            drop = strength + float(random.normal(0, 0.05))
            rate, removed = 0.6 - 0.5 * drop, 20 * (1 + i % 3)
            results.append(
                Result(
                    *organism,
                    entry.name,
                    scored=3,
                    behaviours=3,
                    average_precision=min(1.0, max(0.0, 0.9 * strength + 0.02 * organism.seed)),
                    precision_at_k=min(1.0, 0.8 * strength + 0.1),
                    rate=rate,
                    rate_at_0=rate / 10,
                    baseline=0.6,
                    baseline_at_0=0.06,
                    oracle=0.1,
                    drop=drop,
                    halved_at=float(removed) if rate <= 0.3 else math.inf,
                    most_removed=60,
                    seconds=0.2 * 1.4**i * (1 + organism.seed / 50),
                    peak_mb=500 + 10 * i,
                )
            )
    lds = {entry.name: (0.3, Interval(0.2, 0.4)) for entry in entries[:2]}
    about = {kind: f"documents planted as {kind}" for kind in kinds}
    standings = standings_of(entries, results, lds)
    return Leaderboard(organisms, about, 20, (5, 20), results, standings, failures, organisms[0], 50)
