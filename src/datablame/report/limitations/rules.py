"""Every rule by name, in the order of the phases; each sentence names the number that triggered it."""

from collections.abc import Callable, Iterable, Mapping

from datablame.report.artifacts import Artifacts
from datablame.report.limitations import attribution, general, patching, surfacing, testing

RULES: Mapping[str, Callable[[Artifacts], Iterable[str]]] = {
    "keyword classifier": surfacing.keyword_classifier,
    "no calibration": surfacing.no_calibration,
    "poor agreement": surfacing.poor_agreement,
    "few positives": surfacing.few_positives,
    "errors alike": surfacing.errors_alike,
    "no alpha*": surfacing.no_alpha_star,
    "held-out coherence": surfacing.held_out_coherence,
    "unscored outputs": surfacing.unscored_outputs,
    "flat behaviour": surfacing.flat_behaviour,
    "truncated": surfacing.truncated,
    "k-hat": surfacing.weights_withheld,
    "path": surfacing.path_withheld,
    "one family": attribution.one_family,
    "stand-in": attribution.stand_in,
    "missing scores": attribution.missing_scores,
    "unranked": attribution.unranked,
    "dropped behaviours": attribution.dropped_behaviours,
    "recall ceiling": attribution.recall_ceiling,
    "unknown ceiling": attribution.unknown_ceiling,
    "prompts in the pool": attribution.prompts_in_the_pool,
    "outputs in the pool": attribution.outputs_in_the_pool,
    "excluded documents": attribution.excluded_documents,
    "skipped rows": attribution.skipped_rows,
    "exposure": patching.exposure,
    "loose fillers": patching.loose_fillers,
    "reproduction": patching.reproduction,
    "nothing harmful": patching.nothing_harmful,
    "incoherent arms": patching.incoherent_arms,
    "unscored arms": patching.unscored_arms,
    "side checks": patching.side_checks,
    "few clean documents": patching.few_clean_documents,
    "drift": patching.drift,
    "single run": testing.single_run,
    "few seeds": testing.few_seeds,
    "smallest p": testing.smallest_p_of_the_family,
    "no A/A pair": testing.no_repeat,
    "mixed model": testing.mixed_model,
    "uncompared prompts": testing.uncompared_prompts,
    "prompts reused": testing.prompts_reused,
    "planted": general.planted,
    "stage": general.stage,
    "re-exposure": general.re_exposure,
    "scope of p": general.scope_of_p,
}


def limitations(found: Artifacts) -> list[str]:
    """The limits of this run."""
    return [text for rule in RULES.values() for text in rule(found)]
