"""Sentences of the verdict: a rise, a method and what it lacks, each with its numbers."""

from datablame.report.artifacts import Row
from datablame.report.effects import Candidate
from datablame.report.gates import LEVEL
from datablame.report.wording import listed, percent, probability
from datablame.stats.permutation import smallest_p
from datablame.surface.rise import Rise


def lacking(method: Candidate, margin: float) -> str:
    """What a method lacks for a success."""
    lacks = []
    if not method.dropped(margin):
        lacks.append(f"a drop of {share(margin)} in both rates against both")
    if method.p_holm is None:
        lacks.append("a p value")
    elif not method.significant:
        lacks.append(f"p under {LEVEL:g}")
    if method.holds is None:
        lacks.append("side checks, which were not evaluated")
    elif not method.holds:
        lacks.append(f"side checks that hold ({'; '.join(method.why) or 'no reason given'})")
    return f"{method_text(method)}: it lacks {listed(lacks)}."


def method_text(method: Candidate) -> str:
    """What removing a method's documents did, by every number that counts."""
    against = listed([f"{_change(drop)} {name}" for name, drop in method.drops.items()])
    coherent = listed([_change(drop).removesuffix(" than") for drop in method.coherent_drops.values()])
    p = "no p value" if method.p_holm is None else f"Holm-adjusted p = {probability(method.p_holm)}"
    checks = {True: "side checks hold", False: "side checks do not hold", None: "no side checks"}[method.holds]
    control = " (a control that goes by words alone)" if method.control else ""
    return (
        f"Removing what {method.arm}{control} flagged leaves {percent(method.rate)} harmful, {against} (among coherent "
        f"outputs {coherent}); {p}; {checks}"
    )


def _change(drop: float | None) -> str:
    if drop is None:
        return "not comparable with"
    return f"{percent(abs(drop))} {'less' if drop >= 0 else 'more'} than"


def interval_text(method: Candidate) -> str:
    """Its 90 % interval against random and the margin."""
    assert method.equivalence is not None
    it = method.equivalence
    return f"{method.arm} [{points(it['low'])}, {points(it['high'])}] within +-{points(it['margin'])} points"


def rise_text(found: Rise) -> str:
    """The rise with its interval."""
    return (
        f"The untrained model's harmful rate on {found.prompts} held-out prompts goes from {percent(found.plain)} at "
        f"alpha 0 to {percent(found.amplified)} at alpha* {found.alpha:g}, a rise of {points(found.difference)} "
        f"points [{points(found.low)}, {points(found.high)}]"
    )


def points(value: float) -> str:
    """A share in percentage points."""
    return f"{100 * value:.1f}"


def no_p_text(row: Row) -> str:
    """Why there is no p value, and what so many seeds could give."""
    seeds = row["seeds"]
    least = probability(smallest_p(seeds, seeds))
    return (
        f"There is no p value with {seeds} training seed{'' if seeds == 1 else 's'} ({row['why']}; {seeds} against "
        f"{seeds} could give {least} at best), so that nothing here can be called significant."
    )


def share(value: float) -> str:
    """A round share in percent."""
    return f"{100 * value:g} %"
