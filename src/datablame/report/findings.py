"""Key findings: sentences that rules make from the numbers, negative results as plainly as positive ones."""

from collections.abc import Iterator, Sequence

from datablame.report.gates import LEVEL
from datablame.report.results import Results
from datablame.report.wording import (
    Statement,
    interval,
    listed,
    number,
    percent,
    probability,
    signed_interval,
    signed_points,
)
from datablame.tables import EVERY, Again, ArmTest, Difference, Quality

_ROUNDING = 1e-12
_LITTLE = 0.8
"""Share of a method's average precision from which a confounder alone does nearly as well."""
_DOING = {
    "remove": "removing",
    "swap": "exchanging the answers of",
    "drop-source": "removing every document of the sources that hold most of",
}
_POOLS = {"whole": "the whole pool", "candidates": "the BM25 candidates"}


def findings(results: Results) -> list[Statement]:
    """What the run shows, in the order of its phases; each sentence carries its numbers."""
    rules = (_surfacing, _attribution, _agreement, _patching)
    return [statement for rule in rules for statement in rule(results)]


def _surfacing(results: Results) -> Iterator[Statement]:
    top = results.top_alpha
    first, last = results.pooled(EVERY, 0.0), results.pooled(EVERY, top)
    if first is None or last is None:
        yield Statement("rates", "No output was scored, so nothing is known about the behaviour.")
        return
    numbers = (
        f"{percent(first.rate)} {interval(*first.interval)} at alpha 0 to "
        f"{percent(last.rate)} {interval(*last.interval)} at alpha {top:g} (n = {first.n} and {last.n})"
    )
    move = f"goes from {numbers}: the 95 % intervals overlap, so no change is shown"
    if last.interval.low > first.interval.high or last.interval.high < first.interval.low:
        verb = "rises" if last.rate > first.rate else "falls"
        move = f"{verb} from {numbers}: the 95 % intervals are disjoint"
    yield Statement("rates", f"Over all prompts the harmful rate {move}.")
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
        yield Statement("rising", f"With disjoint intervals rise: {listed(rising)}.")
    if flat:
        yield Statement("flat", f"Without disjoint intervals: {listed(flat)}.")
    star = results.alpha_star.alpha_star
    if star is None:
        yield Statement("alpha*", "At no alpha above 0 are enough outputs coherent, so that there is no alpha*.")
    else:
        coherent = percent(results.alpha_star.coherence[f"{star:g}"])
        yield Statement("alpha*", f"alpha* is {star:g}: {coherent} of the outputs are coherent there.")


def _attribution(results: Results) -> Iterator[Statement]:
    if not results.queries:
        text = f"{results.untraced}, so that nothing was traced and no document is blamed."
        yield Statement("nothing traced", text)
        return
    for pool, words in _POOLS.items():
        rows = [row for row in results.quality if row.pool == pool and row.behaviour == EVERY]
        if rows:
            yield _precision(results, rows, words)
            yield from _confounded(results, rows, words)


def _precision(results: Results, rows: Sequence[Quality], within: str) -> Statement:
    ranked = sorted(rows, key=lambda row: -(row.precision_at_k or 0))
    methods, controls = (
        [f"{row.method} {number(row.precision_at_k)}" for row in ranked if results.is_control(row.method) == control]
        for control in (False, True)
    )
    sentence = (
        f"Precision at {results.attribution.k} within {within}, where chance gives {number(ranked[0].base_rate, 3)}: "
        f"{listed(methods)}"
    )
    return Statement("precision", f"{sentence}; the controls reach {listed(controls)}." if controls else f"{sentence}.")


def _confounded(results: Results, rows: Sequence[Quality], within: str) -> Iterator[Statement]:
    precision = {row.method: row.auprc or 0.0 for row in rows}
    for method, similarity in precision.items():
        confounders = [name for name in precision if method in results.methods[name].confounds]
        best = max((precision[name] for name in confounders), default=None)
        if best is not None and best >= _LITTLE * similarity:
            label = results.methods[method].label
            yield Statement(
                "confounder",
                f"Within {within} a confounder alone ({' or '.join(confounders)}, average precision {number(best)}) "
                f"comes within a fifth of {label} ({number(similarity)}): there, {label} adds little.",
            )


def _agreement(results: Results) -> Iterator[Statement]:
    if pairs := results.compared_methods():
        chance = sum(pair.jaccard_chance or 0.0 for pair in pairs) / len(pairs)
        closest = max(pairs, key=lambda pair: pair.jaccard or 0.0)
        yield Statement(
            "agreement",
            f"The methods' first {results.attribution.k} overlap with a mean Jaccard of {number(results.mean_jaccard)} "
            f"(chance {number(chance)}); closest are {closest.a} and {closest.b} ({number(closest.jaccard)}).",
        )


def _patching(results: Results) -> Iterator[Statement]:
    if not results.tests or results.alpha is None:
        yield Statement("nothing removed", "Nothing was removed, so that no arm was trained.")
        return
    for protocol in results.protocols:
        baseline = results.of_role("baseline", protocol)
        if baseline is None:
            continue
        headline = protocol == results.study.patch.headline
        kind = "headline protocol" if headline else "exploratory protocol"
        seeds = baseline.seeds
        runs = "a single run, which shows no more than a direction" if seeds == 1 else f"{seeds} seeds"
        references = [results.of_role("after", protocol), baseline, results.of_role("random", protocol)]
        rates = [f"{test.arm} {percent(test.rate)}" for test in references if test is not None]
        about = f"{protocol} ({kind}, {runs}), harmful rate on held-out prompts at alpha {results.alpha:g}"
        yield Statement("references", f"{about}: {listed(rates)}.")
        if headline and results.patching and results.patching.again is not None:
            yield Statement("A/A pair", _again(results.patching.again))
        for test in results.tested(protocol):
            if results.arms[test.arm].role in ("control", "method") and test.to_random:
                yield Statement("removal", _removal(results, test, test.to_random))
        if len(results.ks) > 1:
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


def _doses(results: Results, protocol: str) -> Iterator[Statement]:
    """Which method leaves least at each K; the winner may change with K."""
    lowest = []
    for k in results.ks:
        tests = [test for test in results.tested(protocol, k=k) if results.arms[test.arm].in_family]
        if rates := {test.arm: test.rate for test in tests if test.rate is not None}:
            least = min(rates.values())
            lowest.append((k, [arm for arm, rate in rates.items() if rate - least < _ROUNDING], least))
    if lowest:
        winners = listed([f"{' or '.join(arms)} at K = {k} ({percent(rate)})" for k, arms, rate in lowest])
        same = "the same" if set.intersection(*(set(arms) for _, arms, _ in lowest)) else "not the same"
        yield Statement(
            "doses",
            f"{protocol}: least is left by {winners}, {same} at every K; only K = {results.k} was declared to decide.",
        )


def _removal(results: Results, test: ArmTest, against: Difference) -> str:
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
