"""Arms compared at the level of training seeds: pure functions of the tables."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.patch.registry import ArmKind
from datablame.seeds import stream_key
from datablame.stats.arm_tests import CrossedT, crossed_t, holm, permutation_p, tost
from datablame.stats.intervals import two_way, wilson
from datablame.tables import (
    EVERY,
    LABELS,
    Again,
    ArmRate,
    ArmSample,
    ArmTest,
    Difference,
    Equivalence,
    LabelCounts,
    Protocol,
)

MIN_SEEDS = 4
"""With three against three seeds no permutation p can be below .10, so none is given."""
EQUIVALENCE_LEVEL = 0.05
"""Of each of the two one-sided tests: the 90 % interval decides."""

_CELL = ("arm", "protocol", "k", "seed", "behaviour", "prompt_id", "split", "alpha")
Rates = NDArray[np.float64]
"""(seeds, prompts); NaN where nothing of a cell was scored."""


class Headline(NamedTuple):
    """The comparison that decides: rows over all behaviours on held-out prompts."""

    protocol: Protocol
    k: int
    alpha: float


def comparison(samples: Iterable[ArmSample]) -> list[ArmRate]:
    """One row for each arm, protocol, k, seed, prompt and alpha: labels counted, rate and Wilson interval."""
    cells: dict[tuple[Any, ...], Counter[str]] = {}
    for sample in samples:
        cells.setdefault(tuple(getattr(sample, name) for name in _CELL), Counter())[sample.label] += 1
    table = []
    for cell, labels in cells.items():
        counts: dict[str, Any] = {label: labels[label] for label in LABELS}
        n = labels.total()
        scored = n - labels["unscored"]
        interval = wilson(labels["harmful"], scored) if scored else None
        rate = labels["harmful"] / scored if scored else None
        low, high = (interval.low, interval.high) if interval else (None, None)
        table.append(ArmRate(**dict(zip(_CELL, cell, strict=True)), n=n, **counts, rate=rate, low=low, high=high))
    return table


def compared(
    table: Sequence[ArmRate], kinds: Sequence[ArmKind], headline: Headline, seed: int, margin: float
) -> list[ArmTest]:
    """For every protocol, alpha, split, behaviour, arm and K: rate, interval, differences to random and baseline, p.

    The rows of the headline decide, the others are exploratory. An arm at K is compared with random at the same K; an
    arm that is the same at every K stands once, with K = 0, and is compared with random at the headline's K. Each
    seed's value is the mean over prompts of their rates. Holm runs over the arms of the family at one K, on the larger
    of the p values against random and against baseline. `margin` is the share of the reference's rate within which a
    difference counts as none.
    """
    baseline = next(kind.name for kind in kinds if kind.role == "baseline")
    tests = []
    groups = dict.fromkeys((row.protocol, row.alpha, row.split) for row in table if row.arm == baseline)
    for protocol, alpha, split in groups:
        rows = [r for r in table if r.alpha == alpha and r.split == split and r.protocol in (protocol, "none")]
        decides = (protocol, alpha, split) == (headline.protocol, headline.alpha, "held-out")
        for behaviour in (EVERY, *dict.fromkeys(row.behaviour for row in rows)):
            chosen = [row for row in rows if behaviour in (EVERY, row.behaviour)]
            for index, k in enumerate(_ks(chosen, headline.k)):
                own = [row for row in chosen if row.k in (0, k)]
                k_of = {row.arm: row.k for row in own}
                rates = _complete({kind.name: _rates(own, kind.name) for kind in kinds if kind.name in k_of})
                marked = decides and behaviour == EVERY and k == headline.k
                family = []
                for kind in kinds:
                    if kind.name in rates and (k_of[kind.name] or index == 0):
                        where = (protocol, k_of[kind.name], alpha, split, behaviour, kind.name)
                        differences = _Differences(kinds, rates, stream_key("bootstrap", seed, *where), margin)
                        family.append(_test(kind, differences, own, where, headline=marked))
                tests += _adjusted(family, kinds)
    return tests


def again(tests: Iterable[ArmTest], kinds: Sequence[ArmKind]) -> Again | None:
    """The baseline trained again on other seeds against itself, where the verdict comes from; None if it was not."""
    roles = {kind.name: kind.role for kind in kinds}
    decisive = {roles[row.arm]: row for row in tests if row.headline}
    if "again" not in decisive:
        return None
    row, against = decisive["again"], decisive["again"].to_baseline
    names = ("difference", "low", "high", "p", "smallest_p", "why_no_p")
    numbers = {name: getattr(against, name) for name in names} if against else dict.fromkeys(names)
    if against is None:
        numbers["why_no_p"] = "no prompt was scored in every arm and seed"
    return Again(row.protocol, row.seeds, decisive["baseline"].rate, row.rate, **numbers)


def difference(rates: Rates, reference: Rates, key: int, margin: float) -> Difference:
    """The mean of `rates` less that of `reference`, both (seeds, prompts) with the same prompts.

    `margin` is the share of the reference's rate within which a difference counts as none.
    """
    interval = two_way(rates, reference, key)
    enough = min(rates.shape[0], reference.shape[0]) >= MIN_SEEDS
    test = permutation_p(rates.mean(1), reference.mean(1)) if enough else None
    crossed = crossed_t(rates, reference)
    rate = float(reference.mean())
    apart = float(rates.mean()) - rate
    return Difference(
        difference=apart,
        low=interval.low,
        high=interval.high,
        relative=apart / rate if rate else None,
        p=test.p if test else None,
        smallest_p=test.smallest if test else None,
        why_no_p=None if enough else f"fewer than {MIN_SEEDS} training seeds",
        t=crossed.t if crossed else None,
        t_p=crossed.p if crossed else None,
        t_low=crossed.low if crossed else None,
        t_high=crossed.high if crossed else None,
        equivalence=_equivalence(crossed, margin * rate),
    )


def _equivalence(crossed: CrossedT | None, margin: float) -> Equivalence | None:
    """Two one-sided tests with the crossed t's error; None where there is none, or the reference shows nothing."""
    if crossed is None or not margin > 0:
        return None
    test = tost(crossed.difference, crossed.standard_error, crossed.df, margin, EQUIVALENCE_LEVEL)
    return Equivalence(EQUIVALENCE_LEVEL, test.low, test.high, margin, test.p, test.equivalent)


def _ks(rows: Sequence[ArmRate], first: int) -> list[int]:
    """Every K of the rows, the headline's first; 0 alone where no arm depends on K."""
    ks = {row.k for row in rows} - {0}
    return sorted(ks, key=lambda k: (k != first, k)) or [0]


def _rates(rows: Sequence[ArmRate], arm: str) -> Rates:
    own = [row for row in rows if row.arm == arm]
    seeds = {seed: index for index, seed in enumerate(sorted({row.seed for row in own}))}
    prompts = {prompt: index for index, prompt in enumerate(sorted({row.prompt_id for row in rows}))}
    harmful, scored = np.zeros((2, len(seeds), len(prompts)))
    for row in own:
        cell = seeds[row.seed], prompts[row.prompt_id]
        harmful[cell], scored[cell] = row.harmful, row.n - row.unscored
    return np.divide(harmful, scored, out=np.full_like(harmful, np.nan), where=scored > 0)


def _complete(rates: Mapping[str, Rates]) -> dict[str, Rates]:
    """The prompts that were scored in every arm and seed."""
    scored = ~np.isnan(np.concatenate(list(rates.values()))).any(0)
    return {arm: own[:, scored] for arm, own in rates.items()}


class _Differences(NamedTuple):
    """What an arm is compared with, and how."""

    kinds: Sequence[ArmKind]
    rates: Mapping[str, Rates]
    key: int
    margin: float

    def to(self, role: str, kind: ArmKind) -> Difference | None:
        """The arm's difference to the arm of that role; None for the after model and for that arm itself."""
        reference = next((k.name for k in self.kinds if k.role == role and k.name in self.rates), None)
        own = self.rates[kind.name]
        if reference is None or kind.role in (role, "after") or not own.shape[1]:
            return None
        return difference(own, self.rates[reference], self.key, self.margin)


def _test(
    kind: ArmKind,
    differences: _Differences,
    rows: Sequence[ArmRate],
    where: tuple[str, int, float, str, str, str],
    *,
    headline: bool,
) -> ArmTest:
    protocol, k, alpha, split, behaviour, _ = where
    rates = differences.rates[kind.name]
    per_seed = rates.mean(1) if rates.shape[1] else np.array([])
    interval = two_way(rates, None, differences.key) if per_seed.size else None
    to_random, to_baseline = differences.to("random", kind), differences.to("baseline", kind)
    p_values = [d.p for d in (to_random, to_baseline) if d is not None and d.p is not None]
    counts = {label: sum(getattr(row, label) for row in rows if row.arm == kind.name) for label in LABELS}
    coherent = sum(counts.values()) - counts["unscored"] - counts["incoherent"]
    return ArmTest(
        arm=kind.name,
        protocol=protocol,
        alpha=alpha,
        split=split,  # type: ignore[arg-type]
        behaviour=behaviour,
        k=k,
        headline=headline,
        seeds=int(rates.shape[0]),
        prompts=int(rates.shape[1]),
        per_seed=tuple(per_seed.tolist()),
        rate=float(per_seed.mean()) if per_seed.size else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        to_random=to_random,
        to_baseline=to_baseline,
        p=max(p_values) if len(p_values) == 2 else None,
        p_holm=None,
        family=None,
        counts=LabelCounts(**counts),
        rate_of_coherent=counts["harmful"] / coherent if coherent else None,
    )


def _adjusted(tests: Sequence[ArmTest], kinds: Sequence[ArmKind]) -> list[ArmTest]:
    """The same rows, those of the family with Holm's adjustment."""
    in_family = {kind.name for kind in kinds if kind.in_family}
    p_values = {test.arm: test.p for test in tests if test.arm in in_family and test.p is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        replace(test, p_holm=adjusted[test.arm], family=len(adjusted)) if test.arm in adjusted else test
        for test in tests
    ]
