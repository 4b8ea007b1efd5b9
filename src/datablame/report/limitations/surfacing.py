"""Limits of sampling and labelling."""

from collections.abc import Iterable, Mapping

from datablame.report.artifacts import Artifacts, Row
from datablame.report.findings import pooled_rate
from datablame.report.gates import LEAST_KAPPA, MOST_UNSCORED
from datablame.report.wording import listed, number, percent
from datablame.tables import EVERY

_FEW_POSITIVES = 10
"""Harmful outputs in a calibration set below which sensitivity is hardly known."""
_EXACT = ("rules", "no classifier")
"""The organism's rules label what was planted by definition."""


def keyword_classifier(found: Artifacts) -> Iterable[str]:
    """Keywords stand in for a judge."""
    if found.classifier == "keywords":
        yield (
            f"Outputs were labelled by keywords ({len(found.samples)} of the surface phase, and all of the arms), not "
            "by a judge: paraphrases are missed and quotations are counted."
        )


def no_calibration(found: Artifacts) -> Iterable[str]:
    """Nobody knows how often the classifier errs."""
    if found.calibration is None and found.classifier not in _EXACT:
        yield (
            f"People labelled 0 of {len(found.samples)} outputs (judge.calibration is empty): how often "
            f"{found.classifier} errs is unknown, and no rate is corrected for it."
        )


def poor_agreement(found: Artifacts) -> Iterable[str]:
    """Kappa under the gate's .6."""
    if found.calibration is None or found.calibration["kappa"] >= LEAST_KAPPA:
        return
    low, high = found.calibration["kappa_interval"]
    yield (
        f"The classifier agrees poorly with people: Cohen's kappa is {number(found.calibration['kappa'])} "
        f"[{number(low)}, {number(high)}] on {found.calibration['n']} labelled outputs, under "
        f"{number(LEAST_KAPPA, 1)}."
    )


def few_positives(found: Artifacts) -> Iterable[str]:
    """Sensitivity from a handful of outputs."""
    if found.calibration is None:
        return
    counts = found.calibration["counts"]
    positives = counts["true_positive"] + counts["false_negative"]
    if positives < _FEW_POSITIVES:
        yield (
            f"The classifier's sensitivity rests on {positives} outputs that people call harmful, fewer than "
            f"{_FEW_POSITIVES}; corrected rates are as uncertain as that."
        )


def errors_alike(found: Artifacts) -> Iterable[str]:
    """What a correction assumes."""
    if found.calibration is not None:
        yield (
            "Corrected rates take the classifier to err alike for every behaviour, alpha and arm, as on the "
            f"{found.calibration['n']} labelled outputs; findings and tests use the raw rates."
        )


def no_alpha_star(found: Artifacts) -> Iterable[str]:
    """Arms were compared at an amplification that is not coherent enough."""
    coherence = found.alpha_star["coherence"]
    if found.alpha_star["alpha_star"] is None and coherence:
        best = max((share for alpha, share in coherence.items() if float(alpha) > 0), default=0.0)
        yield (
            f"No alpha* exists: the most coherent amplification has {percent(best)} coherent outputs, fewer than the "
            f"{percent(found.study.surface.coherent_share)} asked for; arms were compared at the smallest alpha."
        )


def held_out_coherence(found: Artifacts) -> Iterable[str]:
    """alpha* is chosen on attribution prompts; on the held-out ones the model may be less coherent."""
    star, least = found.alpha_star["alpha_star"], found.study.surface.coherent_share
    for row in found.rates:
        if (row["prompt_id"], row["behaviour"], row["split"], row["alpha"]) == (EVERY, EVERY, "held-out", star):
            scored = row["n"] - row["unscored"]
            if scored and 1 - row["incoherent"] / scored < least:
                yield (
                    f"On held-out prompts {percent(1 - row['incoherent'] / scored)} of the untrained model's outputs "
                    f"are coherent at alpha* = {star:g}, fewer than the {percent(least)} by which alpha* was chosen on "
                    "attribution prompts."
                )


def unscored_outputs(found: Artifacts) -> Iterable[str]:
    """Outputs of the surface phase without a label."""
    unscored = sum(found.unscored.values())
    if unscored:
        yield without_label("outputs", unscored, len(found.samples), found.unscored)


def without_label(what: str, unscored: int, n: int, reasons: Mapping[str, int]) -> str:
    """How many have no label, why, and whether that is too many."""
    share = unscored / max(1, n)
    told = listed([f"{count} because {reason}" for reason, count in reasons.items()])
    much = f", more than {percent(MOST_UNSCORED)}, so that the rates may be biased" if share > MOST_UNSCORED else ""
    return f"{unscored} of {n} {what} have no label ({told}); they count neither way{much}."


def flat_behaviour(found: Artifacts) -> Iterable[str]:
    """Amplification does not surface it."""
    top = max(found.study.surface.alphas)
    for behaviour in found.behaviours:
        first, last = pooled_rate(found, behaviour, 0.0), pooled_rate(found, behaviour, top)
        if first and last and last.interval.low <= first.interval.high:
            yield (
                f"{behaviour} does not rise with amplification ({percent(first.rate)} at alpha 0, "
                f"{percent(last.rate)} at alpha {top:g}); what is said of it rests on few harmful outputs."
            )


def truncated(found: Artifacts) -> Iterable[str]:
    """Outputs that were drawn with a truncation say nothing about the rate at alpha 0."""
    if found.samples and not found.unamplified["possible"]:
        yield f"The rate at alpha 0 is not estimated from amplified outputs: {found.unamplified['why_not']}."


def weights_withheld(found: Artifacts) -> Iterable[str]:
    """Importance weights that cannot be trusted, k-hat above .7 for one."""
    yield from _withheld(found, "importance", "from importance weights")


def path_withheld(found: Artifacts) -> Iterable[str]:
    """A line along the log odds that cannot be drawn or is contradicted."""
    yield from _withheld(found, "path", "along the logit path")


def _withheld(found: Artifacts, name: str, how: str) -> Iterable[str]:
    rows: list[Row] = [row for row in found.unamplified["rows"] if row[name]["withheld"] is not None]
    if rows:
        told = [
            f"{'all' if row['behaviour'] == EVERY else row['behaviour']}, {row['split']}: {row[name]['withheld']}"
            for row in rows
        ]
        yield (
            f"The rate at alpha 0 {how} is withheld in {len(rows)} of {len(found.unamplified['rows'])} cases "
            f"({'; '.join(told)})."
        )
