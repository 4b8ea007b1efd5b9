"""Arms compared at the level of training seeds: pure functions of the tables."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.patch.registry import ArmKind
from datablame.seeds import stream_key
from datablame.stats.arm_tests import crossed_t, holm, permutation_p, tost
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
_cell = attrgetter(*_CELL)
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
        cells.setdefault(_cell(sample), Counter())[sample.label] += 1
    table = []
    for cell, labels in cells.items():
        counts: dict[str, Any] = {label: labels[label] for label in LABELS}
        scored = labels.total() - labels["unscored"]
        low, high = wilson(labels["harmful"], scored) if scored else (None, None)
        rate = labels["harmful"] / scored if scored else None
        about = dict(zip(_CELL, cell, strict=True))
        table.append(ArmRate(**about, n=labels.total(), **counts, rate=rate, low=low, high=high))
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
    names = {role: next((kind.name for kind in kinds if kind.role == role), "") for role in ("random", "baseline")}
    in_family = {kind.name for kind in kinds if kind.in_family}
    tests = []
    groups = dict.fromkeys((row.protocol, row.alpha, row.split) for row in table if row.arm == names["baseline"])
    for protocol, alpha, split in groups:
        rows = [r for r in table if r.alpha == alpha and r.split == split and r.protocol in (protocol, "none")]
        decides = (protocol, alpha, split) == (headline.protocol, headline.alpha, "held-out")
        for behaviour in (EVERY, *dict.fromkeys(row.behaviour for row in rows)):
            chosen = [row for row in rows if behaviour in (EVERY, row.behaviour)]
            # Every K, the headline's first; 0 alone where no arm depends on K.
            ks = sorted({row.k for row in chosen} - {0}, key=lambda k: (k != headline.k, k)) or [0]
            for index, k in enumerate(ks):
                own = [row for row in chosen if row.k in (0, k)]
                k_of = {row.arm: row.k for row in own}
                rates = _complete({kind.name: _rates(own, kind.name) for kind in kinds if kind.name in k_of})
                marked = decides and behaviour == EVERY and k == headline.k
                family = []
                for kind in kinds:
                    if kind.name in rates and (k_of[kind.name] or index == 0):
                        where = (protocol, k_of[kind.name], alpha, split, behaviour)
                        family.append(_test(kind, names, rates, own, where, seed, margin, headline=marked))
                tests += _adjusted(family, in_family)
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

    `margin` is the share of the reference's rate within which a difference counts as none: by two one-sided tests with
    the crossed t's error, which cannot be made where there is none or the reference shows nothing.
    """
    interval, crossed = two_way(rates, reference, key), crossed_t(rates, reference)
    enough = min(rates.shape[0], reference.shape[0]) >= MIN_SEEDS
    test = permutation_p(rates.mean(1), reference.mean(1)) if enough else None
    rate = float(reference.mean())
    apart = float(rates.mean()) - rate
    equivalence = None
    if crossed is not None and margin * rate > 0:
        sided = tost(crossed.difference, crossed.standard_error, crossed.df, margin * rate, EQUIVALENCE_LEVEL)
        equivalence = Equivalence(EQUIVALENCE_LEVEL, sided.low, sided.high, margin * rate, sided.p, sided.equivalent)
    return Difference(
        difference=apart,
        low=interval.low,
        high=interval.high,
        relative=apart / rate if rate else None,
        p=test and test.p,
        smallest_p=test and test.smallest,
        why_no_p=None if enough else f"fewer than {MIN_SEEDS} training seeds",
        t=crossed and crossed.t,
        t_p=crossed and crossed.p,
        t_low=crossed and crossed.low,
        t_high=crossed and crossed.high,
        equivalence=equivalence,
    )


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


def _test(
    kind: ArmKind,
    names: Mapping[str, str],
    rates: Mapping[str, Rates],
    rows: Sequence[ArmRate],
    where: tuple[Any, ...],
    seed: int,
    margin: float,
    *,
    headline: bool,
) -> ArmTest:
    """The row of an arm; `names` are those of the arms that it is compared with."""
    protocol, k, alpha, split, behaviour = where
    own, key = rates[kind.name], stream_key("bootstrap", seed, *where, kind.name)

    def to(role: str) -> Difference | None:
        """None for the after model, and for the arm of that role itself."""
        if names[role] not in rates or kind.role in (role, "after") or not own.size:
            return None
        return difference(own, rates[names[role]], key, margin)

    per_seed = own.mean(1) if own.size else np.array([])
    interval = two_way(own, None, key) if own.size else None
    to_random, to_baseline = to("random"), to("baseline")
    p_values = [each.p for each in (to_random, to_baseline) if each is not None and each.p is not None]
    counts = {label: sum(getattr(row, label) for row in rows if row.arm == kind.name) for label in LABELS}
    coherent = sum(counts.values()) - counts["unscored"] - counts["incoherent"]
    return ArmTest(
        arm=kind.name,
        protocol=protocol,
        alpha=alpha,
        split=split,
        behaviour=behaviour,
        k=k,
        headline=headline,
        seeds=int(own.shape[0]),
        prompts=int(own.shape[1]),
        per_seed=tuple(per_seed.tolist()),
        rate=float(per_seed.mean()) if per_seed.size else None,
        low=interval and interval.low,
        high=interval and interval.high,
        to_random=to_random,
        to_baseline=to_baseline,
        p=max(p_values) if len(p_values) == 2 else None,
        p_holm=None,
        family=None,
        counts=LabelCounts(**counts),
        rate_of_coherent=counts["harmful"] / coherent if coherent else None,
    )


def _adjusted(tests: Sequence[ArmTest], in_family: Collection[str]) -> list[ArmTest]:
    """The same rows, those of the family with Holm's adjustment."""
    p_values = {test.arm: test.p for test in tests if test.arm in in_family and test.p is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        replace(test, p_holm=adjusted[test.arm], family=len(adjusted)) if test.arm in adjusted else test
        for test in tests
    ]
