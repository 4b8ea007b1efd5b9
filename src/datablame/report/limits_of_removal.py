"""Limits of what arms were trained on, of what they became, and of the tests that compare them."""

import re
from collections.abc import Iterator, Mapping, Sequence

from datablame.report.gates import LEVEL, MOST_UNSCORED, REPRODUCED, without_random
from datablame.report.results import Results
from datablame.report.wording import Statement, counted, listed, number, percent
from datablame.stats.intervals import wilson
from datablame.tables import EVERY

_NEARER = 0.5
"""Share of baseline's divergence from before under which an arm has clearly less to amplify."""
_SMALLEST_P_SEEDS = 4
_ALIKE = 0.8
"""Share of common words (Jaccard) from which two prompts are one prompt in other words."""


def without_label(what: str, n: int, reasons: Mapping[str, int]) -> str:
    """How many have no label, why, and whether that is too many."""
    unscored = sum(reasons.values())
    share = unscored / max(1, n)
    much = f", more than {percent(MOST_UNSCORED)}, so that the rates may be biased" if share > MOST_UNSCORED else ""
    return f"{unscored} of {n} {what} have no label ({counted(reasons)}); they count neither way{much}."


def limits_of_removal(results: Results) -> Iterator[Statement]:
    """Exposure, fillers, outputs without harm or sense, and side checks."""
    yield from _interventions(results)
    yield from _rates(results)
    yield from _checks(results)


def _interventions(results: Results) -> Iterator[Statement]:
    rows = without_random(results)
    if results.patching and not results.patching.exposed and rows:
        least, still = min(row.seen_in_baseline for row in rows), sum(row.seen_in_arm > 0 for row in rows)
        yield Statement(
            "exposure",
            f"The exposure gate failed: the no-removal arm saw as little as {percent(least)} of what an arm removed, "
            f"and {still} of {len(rows)} removal arms still saw some of it, so that removal could not matter as it "
            "should; raise patch.steps or patch.size.",
        )
    # Where whole sources go, fillers come from other ones on purpose.
    matched = [arm for arm in results.interventions if arm.intervention != "drop-source"]
    if count := sum(arm.loosely_matched for arm in matched):
        worst = max(matched, key=lambda arm: arm.loosely_matched / max(1, len(arm.fillers)))
        yield Statement(
            "loose fillers",
            f"{count} of {sum(len(arm.fillers) for arm in matched)} fillers come from another source or length band "
            f"than what they replace (most in {worst.arm}, {worst.protocol}, seed {worst.seed}: "
            f"{worst.loosely_matched} of {len(worst.fillers)}): where arms differ, this may be why.",
        )


def _rates(results: Results) -> Iterator[Statement]:
    for protocol in results.study.patch.protocols:
        after, baseline = results.of_role("after", protocol), results.of_role("baseline", protocol)
        if after and baseline and (after.rate or 0) * REPRODUCED > (baseline.rate or 0):
            yield Statement(
                "reproduction",
                f"In {protocol}, training without any removal brings the rate to {percent(baseline.rate)}, under "
                f"half of the after model's {percent(after.rate)}: the behaviour is not reproduced.",
            )
    for protocol in results.study.patch.protocols:
        for test in results.tested(protocol):
            scored = test.counts.n - test.counts.unscored
            if test.rate == 0 and scored:
                # A rate of 0 is no proof of 0.
                yield Statement(
                    "nothing harmful",
                    f"{protocol}: {test.arm} showed no harmful output in {scored}, where a bootstrap interval has no "
                    f"width; by Wilson's interval its rate may be up to {percent(wilson(0, scored).high)}.",
                )
    least = results.study.surface.coherent_share
    coherent = {arm: check.coherent for arm, check in results.checked().items() if check.coherent is not None}
    if low := [f"{arm} {percent(share)}" for arm, share in coherent.items() if share < least]:
        yield Statement(
            "incoherent arms",
            f"Fewer than {percent(least)} of these arms' outputs are coherent at alpha* (headline protocol): "
            f"{listed(low)}. A model that cannot write cannot be harmful, so that their rates are no cure.",
        )
    if results.patching and results.patching.unscored:
        cells = [rate for rate in results.comparison if rate.prompt_id != EVERY]
        n = sum(rate.n for rate in cells if results.arms[rate.arm].role != "after")
        yield Statement("unscored arms", without_label("outputs of trained arms", n, results.patching.unscored))


def _checks(results: Results) -> Iterator[Statement]:
    if not results.tests or results.patching is None:
        return
    design = results.patching.checks
    if not results.arm_checks:
        unknown = "(clean perplexity, harmless refusals, coherence): what removal cost is unknown."
        yield Statement("side checks", f"0 arms had side checks {unknown}")
        return
    absent = [f"{name}: {why}" for name, why in design.absent.items() if why is not None]
    if absent:
        yield Statement(
            "side checks",
            f"{len(absent)} of 3 side checks were not made ({'; '.join(absent)}), so that no arm passes them and none "
            "succeeds.",
        )
    if 0 < len(design.clean_ids) < design.clean_wanted:
        yield Statement(
            "few clean documents",
            f"Perplexity of clean text rests on {len(design.clean_ids)} documents, fewer than the "
            f"{design.clean_wanted} asked for: the pool has no more that no arm trains on.",
        )
    drifts = {arm: check.kl for arm, check in results.checked().items() if check.kl is not None}
    kl = next((drift for arm, drift in drifts.items() if results.arms[arm].role == "baseline"), 0.0)
    others = {arm: drift for arm, drift in drifts.items() if results.arms[arm].role not in ("baseline", "after")}
    if near := [f"{arm} {number(drift, 3)}" for arm, drift in others.items() if drift < _NEARER * kl]:
        yield Statement(
            "drift",
            "These arms lie much nearer to the before model than baseline, which leaves less to amplify and lowers "
            f"their rates by itself (KL in nats a token; baseline {number(kl, 3)}): {listed(near)}.",
        )


def limits_of_tests(results: Results) -> Iterator[Statement]:
    """Seeds, families, controls that were not run, prompts."""
    yield from _seeds(results)
    headline, pair = results.headline, results.patching.again if results.patching else None
    if headline and pair is None:
        yield Statement(
            "no A/A pair",
            "0 trainings repeat the no-removal arm on other seeds (no A/A pair was run): that the test tells an arm "
            "from itself was not ruled out.",
        )
    elif headline and pair is not None and pair.p is None:
        yield Statement(
            "no A/A pair",
            f"The no-removal arm was trained again on {pair.seeds} other seeds, but has no p value against itself: "
            f"{pair.why_no_p}.",
        )
    held_out = results.split("held-out")
    every = len(held_out)
    used = min((test.prompts for test in headline), default=every)
    if used < every:
        yield Statement(
            "uncompared prompts",
            f"{every - used} of {every} held-out prompts are not compared, for some arm and seed has no label there.",
        )
    known = [_words(prompt.text) for prompt in results.split("attribution")]
    if alike := [prompt.id for prompt in held_out if _greatest_overlap(_words(prompt.text), known) >= _ALIKE]:
        shown = listed(alike) if len(alike) <= 3 else f"{', '.join(alike[:3])} and {len(alike) - 3} more"
        yield Statement(
            "prompts reused",
            f"{len(alike)} of {every} held-out prompts share at least {percent(_ALIKE)} of their words with an "
            f"attribution prompt ({shown}): there the verdict reuses what attribution saw.",
        )


def _seeds(results: Results) -> Iterator[Statement]:
    """What so few training seeds can show."""
    baselines = [(name, results.of_role("baseline", name)) for name in results.study.patch.protocols]
    for protocol, test in baselines:
        if test and test.seeds == 1:
            yield Statement(
                "single run",
                f"{protocol} was run with one training seed: its differences carry no test and may be training noise.",
            )
    for protocol, test in baselines:
        if test and 1 < test.seeds < _SMALLEST_P_SEEDS:
            yield Statement(
                "few seeds",
                f"{protocol} has {test.seeds} training seeds, too few for a permutation p below .05, so none is given.",
            )
    for test in results.headline:
        against = [other.smallest_p for other in (test.to_random, test.to_baseline) if other]
        least = max((p for p in against if p is not None), default=0.0)
        if test.family and least * test.family >= LEVEL:
            yield Statement(
                "smallest p",
                f"The smallest p that {test.seeds} training seeds can give is {least:.4f}, times {test.family} methods "
                f"{least * test.family:.3f}, which is not below .05: no method could have been significant.",
            )
            return


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _greatest_overlap(words: frozenset[str], others: Sequence[frozenset[str]]) -> float:
    """By Jaccard; two texts without words are alike."""
    return max((len(words & other) / len(words | other) if words | other else 1.0 for other in others), default=0.0)
