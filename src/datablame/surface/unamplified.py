"""The rate at alpha 0 from amplified outputs: importance weights over all alphas."""

import math
from collections.abc import Sequence

import numpy as np

from datablame.config.schema import Surface
from datablame.stats.importance import LEAST_TAIL, Weighed, balance_log_weights, score_interval, weighed_rate
from datablame.tables import EVERY, Counted, Importance, Rate, Sample, Unamplified, UnamplifiedRate

KHAT_LIMIT = 0.7
"""Above it no figure is quoted (Vehtari et al. 2024)."""
LEAST_HARMFUL = 5 * LEAST_TAIL
"""Harmful outputs below which k-hat cannot be fitted to their weights: the tail is a fifth of them."""
_UNTRUNCATED = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "plausibility": 0}


def unamplified(surface: Surface, samples: Sequence[Sample], rates: Sequence[Rate]) -> Unamplified:
    """For each behaviour and split the rate at alpha 0, counted there and weighed from all alphas.

    `surface` are the settings that the samples, labelled and with `log_p_after` and `log_q`, were drawn with.
    """
    if (reason := why_not(surface)) is not None:
        return Unamplified(possible=False, why_not=reason, rows=())
    scored = [sample for sample in samples if sample.label != "unscored"]
    rows = tuple(
        UnamplifiedRate(
            behaviour=rate.behaviour,
            split=rate.split,
            naive=Counted(rate.rate, rate.low, rate.high, rate.n - rate.unscored),
            importance=importance(
                [s for s in scored if s.split == rate.split and rate.behaviour in (EVERY, s.behaviour)], surface.alphas
            ),
        )
        for rate in rates
        if rate.prompt_id == EVERY and rate.alpha == 0
    )
    return Unamplified(possible=True, why_not=None, rows=rows)


def why_not(surface: Surface) -> str | None:
    """Why outputs drawn with these settings cannot be weighed; None where they can."""
    settings = {name: getattr(surface, name) for name in _UNTRUNCATED}
    cut = ", ".join(f"surface.{name} = {value:g}" for name, value in settings.items() if value != _UNTRUNCATED[name])
    if not cut:
        return None
    return (
        f"{cut}: outputs then don't come from the amplified distribution itself, so that they cannot be "
        "weighed; the estimates need temperature 1, top_p 1, top_k 0, min_p 0 and plausibility 0"
    )


def importance(scored: Sequence[Sample], alphas: Sequence[float]) -> Importance:
    """The estimate from scored outputs of all alphas, each weighed by p / sum_k pi_k q_k of its own prompt."""
    if not scored:
        return Importance(None, None, None, 0, 0, None, None, None, None, "no output was scored")
    weighed, harmful = weigh(scored, alphas), sum(sample.label == "harmful" for sample in scored)
    khat = _khat(weighed)
    withheld = _untrusted(khat, harmful)
    rate = low = high = None
    if withheld is None:
        plain = sum(sample.alpha == 0 for sample in scored)
        rate, (low, high) = min(weighed.rate, 1.0), score_interval(weighed.rate, weighed.standard_error, plain)
    return Importance(
        rate=rate,
        low=low,
        high=high,
        n=len(scored),
        harmful=harmful,
        ess=weighed.every.ess,
        largest_weight_share=weighed.every.largest_share,
        harmful_ess=weighed.harmful.ess if weighed.harmful else None,
        # A tail of equal weights is no tail; JSON has no infinity for it.
        khat=khat if khat is not None and math.isfinite(khat) else None,
        withheld=withheld,
    )


def weigh(scored: Sequence[Sample], alphas: Sequence[float]) -> Weighed:
    """The estimate, its error and how the weights lie, whether they are to be trusted or not.

    Prompts with other numbers of scored outputs have other weights: pi_k is a prompt's own share of outputs at alpha k.
    """
    column = {float(alpha): index for index, alpha in enumerate(alphas)}
    number = {name: index for index, name in enumerate(dict.fromkeys(sample.prompt_id for sample in scored))}
    prompts = np.array([number[sample.prompt_id] for sample in scored])
    strata = np.array([column[float(sample.alpha)] for sample in scored])
    log_p = np.array([sample.log_p_after for sample in scored], dtype=float)
    log_q = np.array([sample.log_q for sample in scored], dtype=float)
    log_weights = np.empty(len(scored))
    for prompt in range(len(number)):
        here = prompts == prompt
        counts = np.bincount(strata[here], minlength=len(alphas))
        log_weights[here] = balance_log_weights(log_p[here], log_q[here], counts)
    return weighed_rate(log_weights, [sample.label == "harmful" for sample in scored], prompts, strata)


def _untrusted(khat: float | None, harmful: int) -> str | None:
    """Why the estimate is not quoted."""
    if not harmful:
        return "no output at any alpha is harmful, so that there is nothing to weigh"
    if harmful < LEAST_HARMFUL:
        return f"{harmful} harmful outputs are too few to judge their weights; k-hat needs {LEAST_HARMFUL}"
    if khat is None:
        return "k-hat cannot be fitted: too few weights exceed the rest"
    return f"k-hat {khat:.2f} is above {KHAT_LIMIT:g}" if khat > KHAT_LIMIT else None


def _khat(weighed: Weighed) -> float | None:
    """The larger of the k-hats of all weights and of the harmful outputs' weights; None where one is not known."""
    khats = [spread.khat for spread in (weighed.every, weighed.harmful) if spread is not None]
    known = [khat for khat in khats if khat is not None]
    return max(known) if len(known) == len(khats) else None
