"""Key findings: sentences that rules make from the numbers, negative results as plainly as positive ones."""

from collections.abc import Iterable, Sequence

from datablame.report.gates import LEVEL
from datablame.report.results import PooledRate, Results
from datablame.report.statement import Statement
from datablame.report.wording import (
    interval,
    listed,
    number,
    percent,
    probability,
    signed_interval,
    signed_points,
)
from datablame.tables import EVERY, Again, ArmTest, Quality

_ROUNDING = 1e-12
_LITTLE = 0.8
"""Share of a method's average precision from which a confounder alone does nearly as well."""
_DOING = {
    "remove": "removing",
    "swap": "exchanging the answers of",
    "drop-source": "removing every document of the sources that hold most of",
}
POOLS = {"whole": "the whole pool", "candidates": "the BM25 candidates"}
"""Pools in words."""


def findings(results: Results) -> list[Statement]:
    """What the run shows, in the order of its phases; each sentence carries its numbers."""
    rules = (_surfacing, _attribution, _agreement, _patching)
    return [Statement(name, True, sentence) for rule in rules for name, sentence in rule(results)]


Named = Iterable[tuple[str, str]]
"""Sentences, each after the name of what it is about."""


def _surfacing(results: Results) -> Named:
    top = results.top_alpha
    first, last = results.pooled(EVERY, 0.0), results.pooled(EVERY, top)
    if first is None or last is None:
        yield "rates", "No output was scored, so nothing is known about the behaviour."
        return
    yield "rates", f"Over all prompts the harmful rate {_move(first, last, top)}."
    rising: list[str] = []
    flat: list[str] = []
    for behaviour in results.behaviours:
        plain, amplified = results.pooled(behaviour, 0.0), results.pooled(behaviour, top)
        if plain is None or amplified is None:
            flat.append(f"{behaviour} (nothing scored)")
        else:
            rises = amplified.interval.low > plain.interval.high
            (rising if rises else flat).append(f"{behaviour} ({percent(plain.rate)} to {percent(amplified.rate)})")
    if rising:
        yield "rising", f"With disjoint intervals rise: {listed(rising)}."
    if flat:
        yield "flat", f"Without disjoint intervals: {listed(flat)}."
    star = results.alpha_star.alpha_star
    if star is None:
        yield "alpha*", "At no alpha above 0 are enough outputs coherent, so that there is no alpha*."
    else:
        coherent = percent(results.alpha_star.coherence[f"{star:g}"])
        yield "alpha*", f"alpha* is {star:g}: {coherent} of the outputs are coherent there."


def _move(first: PooledRate, last: PooledRate, top: float) -> str:
    numbers = (
        f"{percent(first.rate)} {interval(*first.interval)} at alpha 0 to "
        f"{percent(last.rate)} {interval(*last.interval)} at alpha {top:g} (n = {first.n} and {last.n})"
    )
    if last.interval.low > first.interval.high:
        return f"rises from {numbers}: the 95 % intervals are disjoint"
    if last.interval.high < first.interval.low:
        return f"falls from {numbers}: the 95 % intervals are disjoint"
    return f"goes from {numbers}: the 95 % intervals overlap, so no change is shown"


def _attribution(results: Results) -> Named:
    if not results.queries:
        yield "nothing traced", f"{results.untraced}, so that nothing was traced and no document is blamed."
        return
    for pool, words in POOLS.items():
        rows = [row for row in results.quality if row.pool == pool and row.behaviour == EVERY]
        if rows:
            yield "precision", _precision(results, rows, words)
            yield from (("confounder", text) for text in _confounded(results, rows, words))


def _precision(results: Results, rows: Sequence[Quality], within: str) -> str:
    ranked = sorted(rows, key=lambda row: -(row.precision_at_k or 0))
    methods, controls = (
        [f"{row.method} {number(row.precision_at_k)}" for row in ranked if results.is_control(row.method) == control]
        for control in (False, True)
    )
    sentence = (
        f"Precision at {results.attribution.k} within {within}, where chance gives {number(ranked[0].base_rate, 3)}: "
        f"{listed(methods)}"
    )
    return f"{sentence}; the controls reach {listed(controls)}." if controls else f"{sentence}."


def _confounded(results: Results, rows: Sequence[Quality], within: str) -> Iterable[str]:
    precision = {row.method: row.auprc or 0.0 for row in rows}
    for method, similarity in precision.items():
        confounders = [name for name in precision if method in results.methods[name].confounds]
        best = max((precision[name] for name in confounders), default=None)
        if best is not None and best >= _LITTLE * similarity:
            label = results.methods[method].label
            yield (
                f"Within {within} a confounder alone ({' or '.join(confounders)}, average precision {number(best)}) "
                f"comes within a fifth of {label} ({number(similarity)}): there, {label} adds little."
            )


def _agreement(results: Results) -> Named:
    pairs = results.compared_methods()
    if not pairs:
        return
    mean = sum(pair.jaccard or 0.0 for pair in pairs) / len(pairs)
    chance = sum(pair.jaccard_chance or 0.0 for pair in pairs) / len(pairs)
    closest = max(pairs, key=lambda pair: pair.jaccard or 0.0)
    yield (
        "agreement",
        f"The methods' first {results.attribution.k} overlap with a mean Jaccard of {number(mean)} (chance "
        f"{number(chance)}); closest are {closest.a} and {closest.b} ({number(closest.jaccard)}).",
    )


def _patching(results: Results) -> Named:
    if not results.tests or results.alpha is None:
        yield "nothing removed", "Nothing was removed, so that no arm was trained."
        return
    headline = results.study.patch.headline
    for protocol in results.protocols:
        tests = results.tested(protocol)
        baseline = results.of_role("baseline", tests.values())
        if baseline is None:
            continue
        seeds = baseline.seeds
        kind = "headline protocol" if protocol == headline else "exploratory protocol"
        runs = "a single run, which shows no more than a direction" if seeds == 1 else f"{seeds} seeds"
        references = [results.of_role(role, tests.values()) for role in ("after", "baseline", "random")]
        rates = [f"{test.arm} {percent(test.rate)}" for test in references if test is not None]
        about = f"{protocol} ({kind}, {runs}), harmful rate on held-out prompts at alpha {results.alpha:g}"
        yield "references", f"{about}: {listed(rates)}."
        if protocol == headline and results.patching and results.patching.again is not None:
            yield "A/A pair", _again(results.patching.again)
        for arm, test in tests.items():
            if results.arms[arm].role in ("control", "method") and test.to_random:
                yield "removal", _removal(results, test)
        yield from _doses(results, protocol)


def _again(pair: Again) -> str:
    """The A/A pair: arms that differ in nothing but their seeds."""
    sentence = (
        f"The baseline trained again on {pair.seeds} other seeds (A/A) gives {percent(pair.again)} against "
        f"{percent(pair.rate)}"
    )
    if pair.difference is None or pair.low is None or pair.high is None:
        return f"{sentence}: {pair.why_no_p}."
    sentence += f", {signed_points(pair.difference)} points {signed_interval(pair.low, pair.high)}"
    if pair.p is None:
        return f"{sentence}; no p value: {pair.why_no_p}."
    meaning = "what chance gives" if pair.p >= LEVEL else "more than chance gives, so that the seeds differ"
    return f"{sentence}; permutation p = {probability(pair.p)}, {meaning}."


def _doses(results: Results, protocol: str) -> Named:
    """Which method leaves least at each K; the winner may change with K."""
    if len(results.ks) < 2:
        return
    lowest = []
    for k in results.ks:
        rates = {
            arm: test.rate
            for arm, test in results.tested(protocol, k=k).items()
            if results.arms[arm].in_family and test.rate is not None
        }
        if rates:
            least = min(rates.values())
            lowest.append((k, [arm for arm, rate in rates.items() if rate - least < _ROUNDING], least))
    if lowest:
        winners = listed([f"{' or '.join(arms)} at K = {k} ({percent(rate)})" for k, arms, rate in lowest])
        same = "the same" if set.intersection(*(set(arms) for _, arms, _ in lowest)) else "not the same"
        yield (
            "doses",
            f"{protocol}: least is left by {winners}, {same} at every K; only K = {results.k} was declared to decide.",
        )


def _removal(results: Results, test: ArmTest) -> str:
    against = test.to_random
    assert against is not None
    sentence = (
        f"{test.protocol}: {_DOING[results.study.patch.intervention]} {results.arms[test.arm].target} gives "
        f"{percent(test.rate)}, {signed_points(against.difference)} points against random "
        f"{signed_interval(against.low, against.high)}"
    )
    if against.p is None:
        return f"{sentence}; no p value: {against.why_no_p}."
    chance = "" if against.p < LEVEL else ", which chance may give"
    holm = f", Holm-adjusted {probability(test.p_holm)} against both controls" if test.p_holm is not None else ""
    return f"{sentence}; permutation p = {probability(against.p)}{chance}{holm}."
