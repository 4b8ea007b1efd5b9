"""Limits of what arms were trained on, and of what they became."""

from collections.abc import Iterable, Mapping

from datablame.report.artifacts import Artifacts, Row
from datablame.report.gates import REPRODUCED
from datablame.report.limitations.surfacing import without_label
from datablame.report.wording import listed, number, percent
from datablame.stats.intervals import wilson
from datablame.tables import EVERY

_NEARER = 0.5
"""Share of baseline's divergence from before under which an arm has clearly less to amplify."""


def exposure(found: Artifacts) -> Iterable[str]:
    """The gate failed."""
    rows = [row for row in found.exposure["rows"] if row["arm"] != "random"]
    if found.exposure["passed"] or not rows:
        return
    least = min(row["seen_in_baseline"] for row in rows)
    still = sum(row["seen_in_arm"] > 0 for row in rows)
    yield (
        f"The exposure gate failed: the no-removal arm saw as little as {percent(least)} of what an arm removed, and "
        f"{still} of {len(rows)} removal arms still saw some of it, so that removal could not matter as it should; "
        "raise patch.steps or patch.size."
    )


def loose_fillers(found: Artifacts) -> Iterable[str]:
    """Documents in the places of removed ones that differ from them in source or length."""
    loose = [(row, row["loosely_matched"]) for row in found.arms if row["loosely_matched"] and _matched(row)]
    if loose:
        count, fillers = sum(n for _, n in loose), sum(len(row["fillers"]) for row in found.arms if _matched(row))
        worst, most = max(loose, key=lambda pair: pair[1] / max(1, len(pair[0]["fillers"])))
        yield (
            f"{count} of {fillers} fillers come from another source or length band than what they replace (most in "
            f"{worst['arm']}, {worst['protocol']}, seed {worst['seed']}: {most} of {len(worst['fillers'])}): where "
            "arms differ, this may be why."
        )


def _matched(row: Row) -> bool:
    """Whether fillers should match what they replace: where whole sources go, they come from other ones on purpose."""
    return row.get("intervention") != "drop-source"


def reproduction(found: Artifacts) -> Iterable[str]:
    """Training without any removal already takes the behaviour away."""
    for protocol in found.study.patch.protocols:
        rows = found.tested(protocol=protocol)
        untrained, baseline = rows.get("untrained"), rows.get("baseline")
        if untrained and baseline and (untrained["rate"] or 0) * REPRODUCED > (baseline["rate"] or 0):
            yield (
                f"In {protocol}, training without any removal brings the rate to {percent(baseline['rate'])}, under "
                f"half of the after model's {percent(untrained['rate'])}: the behaviour is not reproduced."
            )


def nothing_harmful(found: Artifacts) -> Iterable[str]:
    """A rate of 0 is not a proof of 0."""
    for protocol in found.study.patch.protocols:
        for arm, row in found.tested(protocol=protocol).items():
            scored = sum(row["counts"].values()) - row["counts"]["unscored"]
            if row["rate"] == 0 and scored:
                yield (
                    f"{protocol}: {arm} showed no harmful output in {scored}, where a bootstrap interval has no width; "
                    f"by Wilson's interval its rate may be up to {percent(wilson(0, scored).high)}."
                )


def incoherent_arms(found: Artifacts) -> Iterable[str]:
    """Incoherent text is never harmful, and no cure either."""
    least = found.study.surface.coherent_share
    low = [
        f"{row['arm']} {percent(row['coherent'])}"
        for row in _checked(found).values()
        if row["coherent"] is not None and row["coherent"] < least
    ]
    if low:
        yield (
            f"Fewer than {percent(least)} of these arms' outputs are coherent at alpha* (headline protocol): "
            f"{listed(low)}. A model that cannot write cannot be harmful, so that their rates are no cure."
        )


def unscored_arms(found: Artifacts) -> Iterable[str]:
    """Outputs of trained arms without a label."""
    arms = sum(found.unscored_arms.values())
    if arms:
        measured = sum(row["n"] for row in found.comparison if row["arm"] != "untrained" and row["prompt_id"] != EVERY)
        yield without_label("outputs of trained arms", arms, measured, found.unscored_arms)


def side_checks(found: Artifacts) -> Iterable[str]:
    """Whether removal cost something else was not looked at."""
    if not found.tests:
        return
    if not found.checks.get("arms"):
        yield "0 arms had side checks (clean perplexity, harmless refusals, coherence): what removal cost is unknown."
        return
    absent = {name: why for name, why in found.checks.get("absent", {}).items() if why is not None}
    if absent:
        told = "; ".join(f"{name}: {why}" for name, why in absent.items())
        yield f"{len(absent)} of 3 side checks were not made ({told}), so that no arm passes them and none succeeds."


def few_clean_documents(found: Artifacts) -> Iterable[str]:
    """Perplexity on less text than was asked for."""
    made, wanted = found.checks.get("clean_documents", 0), found.checks.get("clean_documents_wanted", 0)
    if found.checks.get("arms") and 0 < made < wanted:
        yield (
            f"Perplexity of clean text rests on {made} documents, fewer than the {wanted} asked for: the pool has no "
            "more that no arm trains on."
        )


def drift(found: Artifacts) -> Iterable[str]:
    """An arm nearer to the before model has less difference to amplify."""
    arms = _checked(found)
    reference = arms.get("baseline", {}).get("kl")
    if not reference:
        return
    near = [
        f"{arm} {number(row['kl'], 3)}"
        for arm, row in arms.items()
        if arm not in ("baseline", "untrained") and row["kl"] is not None and row["kl"] < _NEARER * reference
    ]
    if near:
        yield (
            "These arms lie much nearer to the before model than baseline, which leaves less to amplify and lowers "
            f"their rates by itself (KL in nats a token; baseline {number(reference, 3)}): {listed(near)}."
        )


def _checked(found: Artifacts) -> Mapping[str, Row]:
    """The side checks of the arms where the verdict comes from."""
    headline = found.study.patch.headline
    return {
        row["arm"]: row
        for row in found.checks.get("arms", ())
        if row["protocol"] in (headline, "none") and row["k"] in (0, found.k)
    }
