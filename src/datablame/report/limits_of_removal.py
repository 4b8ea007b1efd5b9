"""Limits of what arms were trained on, of what they became, and of the tests that compare them."""

import re
from collections.abc import Iterator, Mapping

from datablame.report.gates import LEVEL, MOST_UNSCORED, REPRODUCED, without_random
from datablame.report.results import Results
from datablame.report.wording import counted, listed, number, percent
from datablame.stats.intervals import wilson
from datablame.tables import EVERY, Arm

_NEARER = 0.5
"""Share of baseline's divergence from before under which an arm has clearly less to amplify."""
_SMALLEST_P_SEEDS = 4
_ALIKE = 0.8
"""Share of common words (Jaccard) from which two prompts are one prompt in other words."""

Limits = Iterator[tuple[str, str]]


def without_label(what: str, n: int, reasons: Mapping[str, int]) -> str:
    """How many have no label, why, and whether that is too many."""
    unscored = sum(reasons.values())
    share = unscored / max(1, n)
    much = f", more than {percent(MOST_UNSCORED)}, so that the rates may be biased" if share > MOST_UNSCORED else ""
    return f"{unscored} of {n} {what} have no label ({counted(reasons)}); they count neither way{much}."


def limits_of_removal(results: Results) -> Limits:
    """Exposure, fillers, outputs without harm or sense, and side checks."""
    yield from _interventions(results)
    yield from _rates(results)
    yield from _checks(results)


def _interventions(results: Results) -> Limits:
    rows = without_random(results)
    if results.patching and not results.patching.exposed and rows:
        least, still = min(row.seen_in_baseline for row in rows), sum(row.seen_in_arm > 0 for row in rows)
        yield (
            "exposure",
            f"The exposure gate failed: the no-removal arm saw as little as {percent(least)} of what an arm removed, "
            f"and {still} of {len(rows)} removal arms still saw some of it, so that removal could not matter as it "
            "should; raise patch.steps or patch.size.",
        )
    # Where whole sources go, fillers come from other ones on purpose.
    matched = [arm for arm in results.interventions if arm.intervention != "drop-source"]
    if count := sum(arm.loosely_matched for arm in matched):

        def share(arm: Arm) -> float:
            return arm.loosely_matched / max(1, len(arm.fillers))

        worst = max(matched, key=share)
        yield (
            "loose fillers",
            f"{count} of {sum(len(arm.fillers) for arm in matched)} fillers come from another source or length band "
            f"than what they replace (most in {worst.arm}, {worst.protocol}, seed {worst.seed}: "
            f"{worst.loosely_matched} of {len(worst.fillers)}): where arms differ, this may be why.",
        )


def _rates(results: Results) -> Limits:
    for protocol in results.study.patch.protocols:
        tests = results.tested(protocol).values()
        after, baseline = results.of_role("after", tests), results.of_role("baseline", tests)
        if after and baseline and (after.rate or 0) * REPRODUCED > (baseline.rate or 0):
            yield (
                "reproduction",
                f"In {protocol}, training without any removal brings the rate to {percent(baseline.rate)}, under "
                f"half of the after model's {percent(after.rate)}: the behaviour is not reproduced.",
            )
    for protocol in results.study.patch.protocols:
        for arm, test in results.tested(protocol).items():
            scored = test.counts.n - test.counts.unscored
            if test.rate == 0 and scored:
                # A rate of 0 is no proof of 0.
                yield (
                    "nothing harmful",
                    f"{protocol}: {arm} showed no harmful output in {scored}, where a bootstrap interval has no width; "
                    f"by Wilson's interval its rate may be up to {percent(wilson(0, scored).high)}.",
                )
    least = results.study.surface.coherent_share
    low = [
        f"{check.arm} {percent(check.coherent)}"
        for check in results.checked().values()
        if check.coherent is not None and check.coherent < least
    ]
    if low:
        yield (
            "incoherent arms",
            f"Fewer than {percent(least)} of these arms' outputs are coherent at alpha* (headline protocol): "
            f"{listed(low)}. A model that cannot write cannot be harmful, so that their rates are no cure.",
        )
    if results.patching and results.patching.unscored:
        trained = [
            rate for rate in results.comparison if results.arms[rate.arm].role != "after" and rate.prompt_id != EVERY
        ]
        n = sum(rate.n for rate in trained)
        yield "unscored arms", without_label("outputs of trained arms", n, results.patching.unscored)


def _checks(results: Results) -> Limits:
    if not results.tests or results.patching is None:
        return
    design = results.patching.checks
    if not results.arm_checks:
        sentence = (
            "0 arms had side checks (clean perplexity, harmless refusals, coherence): what removal cost is unknown."
        )
        yield "side checks", sentence
        return
    absent = [f"{name}: {why}" for name, why in design.absent.items() if why is not None]
    if absent:
        yield (
            "side checks",
            f"{len(absent)} of 3 side checks were not made ({'; '.join(absent)}), so that no arm passes them and none "
            "succeeds.",
        )
    if 0 < len(design.clean_ids) < design.clean_wanted:
        yield (
            "few clean documents",
            f"Perplexity of clean text rests on {len(design.clean_ids)} documents, fewer than the "
            f"{design.clean_wanted} asked for: the pool has no more that no arm trains on.",
        )
    checks = results.checked()
    kl = next((check.kl for arm, check in checks.items() if results.arms[arm].role == "baseline"), None)
    near = [
        f"{arm} {number(check.kl, 3)}"
        for arm, check in checks.items()
        if results.arms[arm].role not in ("baseline", "after") and kl and check.kl is not None
        if check.kl < _NEARER * kl
    ]
    if near:
        yield (
            "drift",
            "These arms lie much nearer to the before model than baseline, which leaves less to amplify and lowers "
            f"their rates by itself (KL in nats a token; baseline {number(kl, 3)}): {listed(near)}.",
        )


def limits_of_tests(results: Results) -> Limits:
    """Seeds, families, controls that were not run, prompts."""
    yield from _seeds(results)
    headline = results.headline
    pair = results.patching.again if results.patching else None
    if headline and pair is None:
        yield (
            "no A/A pair",
            "0 trainings repeat the no-removal arm on other seeds (no A/A pair was run): that the test tells an arm "
            "from itself was not ruled out.",
        )
    elif headline and pair is not None and pair.p is None:
        yield (
            "no A/A pair",
            f"The no-removal arm was trained again on {pair.seeds} other seeds, but has no p value against itself: "
            f"{pair.why_no_p}.",
        )
    held_out = results.split("held-out")
    every = len(held_out)
    used = min((test.prompts for test in headline), default=every)
    if used < every:
        yield (
            "uncompared prompts",
            f"{every - used} of {every} held-out prompts are not compared, for some arm and seed has no label there.",
        )
    known = [_words(prompt.text) for prompt in results.split("attribution")]
    alike = [prompt.id for prompt in held_out if any(_overlap(_words(prompt.text), other) >= _ALIKE for other in known)]
    if alike:
        shown = listed(alike) if len(alike) <= 3 else f"{', '.join(alike[:3])} and {len(alike) - 3} more"
        yield (
            "prompts reused",
            f"{len(alike)} of {every} held-out prompts share at least {percent(_ALIKE)} of their words with an "
            f"attribution prompt ({shown}): there the verdict reuses what attribution saw.",
        )


def _seeds(results: Results) -> Limits:
    """What so few training seeds can show."""
    baselines = [
        (protocol, results.of_role("baseline", results.tested(protocol).values()))
        for protocol in results.study.patch.protocols
    ]
    for protocol, test in baselines:
        if test and test.seeds == 1:
            yield (
                "single run",
                f"{protocol} was run with one training seed: its differences carry no test and may be training noise.",
            )
    for protocol, test in baselines:
        if test and 1 < test.seeds < _SMALLEST_P_SEEDS:
            yield (
                "few seeds",
                f"{protocol} has {test.seeds} training seeds, too few for a permutation p below .05, so none is given.",
            )
    for test in results.headline:
        against = [other.smallest_p for other in (test.to_random, test.to_baseline) if other]
        least = max((p for p in against if p is not None), default=None)
        if test.family and least is not None and least * test.family >= LEVEL:
            yield (
                "smallest p",
                f"The smallest p that {test.seeds} training seeds can give is {least:.4f}, times {test.family} methods "
                f"{least * test.family:.3f}, which is not below .05: no method could have been significant.",
            )
            return


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
