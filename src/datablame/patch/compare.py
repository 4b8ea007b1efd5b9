"""Arms compared at the level of training seeds: pure functions of the tables."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame import tables
from datablame.patch.registry import ArmKind
from datablame.seeds import stream_key
from datablame.stats.arm_tests import crossed_t, holm, permutation_p, tost
from datablame.stats.intervals import share, two_way
from datablame.tables import EVERY, LABELS, ArmRate, ArmTest

MIN_SEEDS = 4
"""With three against three seeds no permutation p can be below .10, so none is given."""
EQUIVALENCE_LEVEL = 0.05
"""Of each of the two one-sided tests: the 90 % interval decides."""

_cell = attrgetter("arm", "protocol", "k", "seed", "behaviour", "prompt_id", "split", "alpha")
Rates = NDArray[np.float64]
"""(seeds, prompts)."""


class Headline(NamedTuple):
    """The comparison that decides: rows over all behaviours on held-out prompts."""

    protocol: tables.Protocol
    k: int
    alpha: float


def comparison(samples: Iterable[tables.ArmSample]) -> list[ArmRate]:
    """One row for each arm, protocol, k, seed, prompt and alpha: labels counted, rate and Wilson interval."""
    cells: dict[tuple[Any, ...], Counter[str]] = {}
    for sample in samples:
        cells.setdefault(_cell(sample), Counter())[sample.label] += 1
    table = []
    for cell, labels in cells.items():
        scored = labels.total() - labels["unscored"]
        interval: tuple[Any, ...] = share(labels["harmful"], scored) if scored else (None, None, None)
        numbers: tuple[Any, ...] = (labels.total(), *(labels[label] for label in LABELS), *interval)
        table.append(ArmRate(*cell, *numbers))
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
    references = {kind.role: kind.name for kind in reversed(kinds) if kind.role in ("random", "baseline")}
    in_family = {kind.name for kind in kinds if kind.in_family}
    tests = []
    for protocol, alpha, split, behaviour, group_k, first, rows in _groups(table, references.get("baseline"), headline):
        k_of = {row.arm: row.k for row in rows}
        rates = _rates(rows, [kind.name for kind in kinds if kind.name in k_of])
        decides = (protocol, group_k, alpha, split, behaviour) == (*headline, "held-out", EVERY)
        family = []
        for kind in kinds:
            if kind.name not in rates or not (k_of[kind.name] or first):
                continue
            matrix, k = rates[kind.name], k_of[kind.name]
            key = stream_key("bootstrap", seed, protocol, k, alpha, split, behaviour, kind.name)
            # None for the after model, and for the arm of that role itself.
            to = {
                role: difference(matrix, rates[name], key, margin)
                for role, name in references.items()
                if name in rates and matrix.size and kind.role not in (role, "after")
            }
            p_values = [each.p for each in to.values() if each.p is not None]
            per_seed = matrix.mean(1) if matrix.size else np.array([])
            rate, low, high = (
                (float(per_seed.mean()), *two_way(matrix, None, key)) if matrix.size else (None, None, None)
            )
            counts = {label: sum(getattr(row, label) for row in rows if row.arm == kind.name) for label in LABELS}
            coherent = sum(counts.values()) - counts["unscored"] - counts["incoherent"]
            family.append(
                ArmTest(
                    *(kind.name, protocol, alpha, split, behaviour, k),
                    headline=decides,
                    seeds=matrix.shape[0],
                    prompts=matrix.shape[1],
                    per_seed=tuple(per_seed.tolist()),
                    rate=rate,
                    low=low,
                    high=high,
                    to_random=to.get("random"),
                    to_baseline=to.get("baseline"),
                    p=max(p_values) if len(p_values) == 2 else None,
                    p_holm=None,
                    family=None,
                    counts=tables.LabelCounts(**counts),
                    rate_of_coherent=counts["harmful"] / coherent if coherent else None,
                )
            )
        tested = {test.arm: test.p for test in family if test.arm in in_family and test.p is not None}
        adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
        tests += [
            replace(test, p_holm=adjusted[test.arm], family=len(adjusted)) if test.arm in adjusted else test
            for test in family
        ]
    return tests


def again(tests: Iterable[ArmTest], kinds: Sequence[ArmKind]) -> tables.Again | None:
    """The baseline trained again on other seeds against itself, where the verdict comes from; None if it was not."""
    roles = {kind.name: kind.role for kind in kinds}
    decisive = {roles[row.arm]: row for row in tests if row.headline}
    if (row := decisive.get("again")) is None:
        return None
    names = ("difference", "low", "high", "p", "smallest_p", "why_no_p")
    numbers: dict[str, Any] = {name: getattr(row.to_baseline, name, None) for name in names}
    if row.to_baseline is None:
        numbers["why_no_p"] = "no prompt was scored in every arm and seed"
    return tables.Again(row.protocol, row.seeds, decisive["baseline"].rate, row.rate, **numbers)


def difference(rates: Rates, reference: Rates, key: int, margin: float) -> tables.Difference:
    """The mean of `rates` less that of `reference`, both (seeds, prompts) with the same prompts.

    `margin` is the share of the reference's rate within which a difference counts as none: by two one-sided tests with
    the crossed t's error, which cannot be made where there is none or the reference shows nothing.
    """
    (low, high), crossed = two_way(rates, reference, key), crossed_t(rates, reference)
    enough = min(rates.shape[0], reference.shape[0]) >= MIN_SEEDS
    p, smallest_p = permutation_p(rates.mean(1), reference.mean(1)) if enough else (None, None)
    why_no_p = None if enough else f"fewer than {MIN_SEEDS} training seeds"
    rate = float(reference.mean())
    apart, equivalence = float(rates.mean()) - rate, None
    relative = apart / rate if rate else None
    t, t_p, t_low, t_high = (crossed.t, crossed.p, crossed.low, crossed.high) if crossed else (None, None, None, None)
    if crossed and margin * rate > 0:
        sided = tost(crossed.difference, crossed.standard_error, crossed.df, margin * rate, EQUIVALENCE_LEVEL)
        equivalence = tables.Equivalence(level=EQUIVALENCE_LEVEL, margin=margin * rate, **sided._asdict())
    numbers = (apart, low, high, relative, p, smallest_p, why_no_p, t, t_p, t_low, t_high)
    return tables.Difference(*numbers, equivalence)


def _groups(
    table: Sequence[ArmRate], baseline: str | None, headline: Headline
) -> Iterator[tuple[str, float, tables.Split, str, int, bool, list[ArmRate]]]:
    """Each protocol, alpha, split, behaviour and K, the headline's first; whether K is the first; what is compared."""
    for protocol, alpha, split in dict.fromkeys((r.protocol, r.alpha, r.split) for r in table if r.arm == baseline):
        rows = [r for r in table if r.alpha == alpha and r.split == split and r.protocol in (protocol, "none")]
        for behaviour in (EVERY, *dict.fromkeys(row.behaviour for row in rows)):
            chosen = [row for row in rows if behaviour in (EVERY, row.behaviour)]
            # 0 alone where no arm depends on K.
            ks = sorted({row.k for row in chosen} - {0}, key=lambda k: (k != headline.k, k)) or [0]
            for k in ks:
                group = [row for row in chosen if row.k in (0, k)]
                yield protocol, alpha, split, behaviour, k, k == ks[0], group


def _rates(rows: Sequence[ArmRate], arms: Iterable[str]) -> dict[str, Rates]:
    """Each arm's rates, of the prompts that were scored in every arm and seed."""
    cells = {(row.arm, row.seed, row.prompt_id): row.rate for row in rows}
    prompts = sorted({row.prompt_id for row in rows})
    rates = {}
    for arm in arms:
        seeds = sorted({row.seed for row in rows if row.arm == arm})
        rates[arm] = np.array([[cells.get((arm, seed, prompt)) for prompt in prompts] for seed in seeds], dtype=float)
    scored = ~np.isnan(np.concatenate(list(rates.values()))).any(0)
    return {arm: matrix[:, scored] for arm, matrix in rates.items()}
