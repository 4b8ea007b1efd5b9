"""Limits of the tests: seeds, families, controls that were not run, prompts."""

import re
from collections.abc import Iterable

from datablame.report.artifacts import Artifacts
from datablame.report.gates import LEVEL
from datablame.report.wording import listed, percent, probability

_SMALLEST_P_SEEDS = 4
_ALIKE = 0.8
"""Share of common words (Jaccard) from which two prompts are one prompt in other words."""


def single_run(found: Artifacts) -> Iterable[str]:
    """One training seed tells no effect from noise."""
    for protocol, seeds in _seeds(found):
        if seeds == 1:
            yield f"{protocol} was run with one training seed: its differences carry no test and may be training noise."


def few_seeds(found: Artifacts) -> Iterable[str]:
    """Two or three seeds can give no p below .05."""
    for protocol, seeds in _seeds(found):
        if 1 < seeds < _SMALLEST_P_SEEDS:
            yield f"{protocol} has {seeds} training seeds, too few for a permutation p below .05, so none is given."


def _seeds(found: Artifacts) -> Iterable[tuple[str, int]]:
    for protocol in found.study.patch.protocols:
        rows = found.tested(protocol=protocol)
        if "baseline" in rows:
            yield protocol, rows["baseline"]["seeds"]


def smallest_p_of_the_family(found: Artifacts) -> Iterable[str]:
    """No method could have been significant."""
    for row in found.headline:
        against = [row[f"to_{name}"] for name in ("random", "baseline") if row[f"to_{name}"]]
        least = [test["smallest_p"] for test in against if test["smallest_p"] is not None]
        if row["family"] and least and max(least) * row["family"] >= LEVEL:
            yield (
                f"The smallest p that {row['seeds']} training seeds can give is {max(least):.4f}, times "
                f"{row['family']} methods {max(least) * row['family']:.3f}, which is not below .05: no method could "
                "have been significant."
            )
            return


def no_repeat(found: Artifacts) -> Iterable[str]:
    """Nobody looked how far the same arm differs from itself."""
    if not found.headline:
        return
    if found.aa is None:
        yield (
            "0 trainings repeat the no-removal arm on other seeds (the arm a-a was not run): that the test tells an "
            "arm from itself was not ruled out."
        )
    elif found.aa["p"] is None:
        yield (
            f"The no-removal arm was trained again on {found.aa['seeds']} other seeds, but has no p value against "
            f"itself: {found.aa['why_no_p']}."
        )


def mixed_model(found: Artifacts) -> Iterable[str]:
    """The sensitivity check says otherwise than the permutation test."""
    for row in found.headline:
        test = row["to_random"]
        mixed = (test or {}).get("mixed")
        if mixed is None or "why_not" in mixed or test["p"] is None:
            continue
        apart = mixed["low"] > 0 or mixed["high"] < 0
        opposite = apart and test["difference"] * mixed["log_odds"] < 0
        if apart != (test["p"] < LEVEL) or opposite:
            yield (
                f"{row['arm']} against random: the permutation test (p = {probability(test['p'])}) and the logistic "
                f"mixed model (log odds {mixed['log_odds']:+.2f} [{mixed['low']:+.2f}, {mixed['high']:+.2f}]) "
                "disagree; the permutation test decides."
            )


def uncompared_prompts(found: Artifacts) -> Iterable[str]:
    """Prompts without a scored output in some arm are left out of every arm."""
    assert found.study.prompts is not None
    every = len(found.study.prompts.held_out)
    used = min((row["prompts"] for row in found.headline), default=every)
    if used < every:
        yield f"{every - used} of {every} held-out prompts are not compared, for some arm and seed has no label there."


def prompts_reused(found: Artifacts) -> Iterable[str]:
    """A held-out prompt that says what an attribution prompt says is not held out."""
    assert found.study.prompts is not None
    known = [_words(prompt.text) for prompt in found.study.prompts.attribution]
    alike = [
        prompt.id
        for prompt in found.study.prompts.held_out
        if any(_overlap(_words(prompt.text), other) >= _ALIKE for other in known)
    ]
    if alike:
        shown = listed(alike) if len(alike) <= 3 else f"{', '.join(alike[:3])} and {len(alike) - 3} more"
        yield (
            f"{len(alike)} of {len(found.study.prompts.held_out)} held-out prompts share at least {percent(_ALIKE)} of "
            f"their words with an attribution prompt ({shown}): there the verdict reuses what attribution saw."
        )


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
