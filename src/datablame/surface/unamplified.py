"""The rate at alpha 0 from amplified outputs: importance weights over all alphas, and a line along the logit path."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datablame.stats.importance import Spread, Weighed, balance_log_weights, score_interval, weighed_rate
from datablame.stats.path import Extrapolated, extrapolated, logit_interval
from datablame.stats.psis import LEAST_TAIL
from datablame.study.schema import Surface
from datablame.tables import EVERY, Rate

Row = Mapping[str, Any]

KHAT_LIMIT = 0.7
"""Above it no figure is quoted (Vehtari et al. 2024)."""
LEAST_HARMFUL = 5 * LEAST_TAIL
"""Harmful outputs below which k-hat cannot be fitted to their weights: the tail is a fifth of them."""
LEAST_COMMON = 5
"""Outputs that must be harmful, and as many that must not, for a behaviour to be common at an alpha."""
_POINTS = 2
"""The line goes through the common alphas nearest 0: log odds bend, and least over the shortest way."""
_DOUBTFUL = 1.96
"""Standard errors between the line and the outputs at alpha 0 from which it is not believed."""
_UNTRUNCATED = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "plausibility": 0}


def unamplified(
    surface: Surface, rows: Sequence[Row], rates: Sequence[Rate], coherence: Mapping[float, float]
) -> dict[str, Any]:
    """The contents of unamplified.json: for each behaviour and split the naive rate at alpha 0 and two estimates.

    Args:
        surface: the settings that the outputs were drawn with.
        rows: labelled outputs with `log_p_after` and `log_q`.
        rates: their rates; the naive one is that of alpha 0.
        coherence: the coherent share of outputs at each alpha; the path uses coherent alphas only.
    """
    if (reason := why_not(surface)) is not None:
        return {"possible": False, "why_not": reason, "rows": []}
    fit = [alpha for alpha in sorted(surface.alphas) if alpha > 0 and coherence.get(alpha, 0) >= surface.coherent_share]
    found = []
    for naive in rates:
        if naive.prompt_id == EVERY and naive.alpha == 0:
            mine = [row for row in rows if row["split"] == naive.split and row["label"] != "unscored"]
            behaviours = [naive.behaviour] if naive.behaviour != EVERY else _behaviours(mine)
            mine = [row for row in mine if row["behaviour"] in behaviours]
            found.append(
                {
                    "behaviour": naive.behaviour,
                    "split": naive.split,
                    "naive": {
                        **{name: getattr(naive, name) for name in ("rate", "low", "high")},
                        "n": naive.n - naive.unscored,
                    },
                    "importance": importance_row(mine, surface.alphas),
                    "path": path_row(mine, fit),
                }
            )
    return {"possible": True, "why_not": None, "rows": found}


def why_not(surface: Surface) -> str | None:
    """Why outputs drawn with these settings cannot be weighed; None where they can."""
    cut = [
        f"surface.{name} = {value:g}"
        for name, need in _UNTRUNCATED.items()
        if (value := getattr(surface, name)) != need
    ]
    if not cut:
        return None
    return (
        f"{', '.join(cut)}: outputs then don't come from the amplified distribution itself, so that they cannot be "
        "weighed; the estimates need temperature 1, top_p 1, top_k 0, min_p 0 and plausibility 0"
    )


def importance_row(rows: Sequence[Row], alphas: Sequence[float]) -> dict[str, Any]:
    """The estimate from scored outputs of all alphas, each weighed by p / sum_k pi_k q_k of its own prompt."""
    if not rows:
        return _importance(None, 0, 0, 0, "no output was scored")
    weighed = weigh(rows, alphas)
    harmful = sum(row["label"] == "harmful" for row in rows)
    plain = sum(row["alpha"] == 0 for row in rows)
    return _importance(weighed, len(rows), harmful, plain, _untrusted(weighed, harmful))


def weigh(rows: Sequence[Row], alphas: Sequence[float]) -> Weighed:
    """The estimate, its error and how the weights lie, whether they are to be trusted or not.

    Prompts with other numbers of scored outputs have other weights: pi_k is a prompt's own share of outputs at alpha k.
    """
    column = {float(alpha): place for place, alpha in enumerate(alphas)}
    number = {name: place for place, name in enumerate(dict.fromkeys(row["prompt_id"] for row in rows))}
    prompts = np.array([number[row["prompt_id"]] for row in rows])
    strata = np.array([column[float(row["alpha"])] for row in rows])
    log_p = np.array([row["log_p_after"] for row in rows], dtype=float)
    log_q = np.array([row["log_q"] for row in rows], dtype=float)
    log_weights = np.empty(len(rows))
    for prompt in range(len(number)):
        here = prompts == prompt
        counts = np.bincount(strata[here], minlength=len(alphas))
        log_weights[here] = balance_log_weights(log_p[here], log_q[here], counts)
    return weighed_rate(log_weights, [row["label"] == "harmful" for row in rows], prompts, strata)


def path_row(rows: Sequence[Row], alphas: Sequence[float]) -> dict[str, Any]:
    """The rate at alpha 0 on a line through the log odds at the two nearest alphas where a behaviour is common.

    A prompt has a level of its own, the prompts of a behaviour share the slope; several behaviours are fitted apart and
    weighed by their prompts. Outputs at alpha 0 have no say in the fit; they only may contradict it.
    """
    parts = []
    for behaviour in _behaviours(rows):
        mine = [row for row in rows if row["behaviour"] == behaviour]
        used, fit, reason = _line(mine, alphas)
        if fit is None:
            several = len(_behaviours(rows)) > 1
            return _path(None, used, f"{behaviour}: {reason}" if several else reason)
        parts.append((len({row["prompt_id"] for row in mine}), used, fit))
    if not parts:
        return _path(None, [], "no output was scored")
    prompts = sum(count for count, _, _ in parts)
    rate = sum(count * fit.rate for count, _, fit in parts) / prompts
    error = math.sqrt(sum((count * fit.standard_error) ** 2 for count, _, fit in parts)) / prompts
    return _path((rate, error), sorted({alpha for _, used, _ in parts for alpha in used}), None)


def _line(rows: Sequence[Row], alphas: Sequence[float]) -> tuple[list[float], Extrapolated | None, str]:
    """The alphas where one behaviour is common, and the line through them, or why there is none."""
    harmful, scored = _counts(rows, alphas)
    k, n = harmful.sum(0), scored.sum(0)
    common = np.flatnonzero((k >= LEAST_COMMON) & (n - k >= LEAST_COMMON))[:_POINTS]
    used = [alphas[place] for place in common]
    if len(used) < _POINTS:
        few = f"{len(used)} of the alphas above 0 with a coherent model"
        return used, None, f"{few} have {LEAST_COMMON} harmful outputs and as many others; a line needs {_POINTS}"
    fit = extrapolated(used, harmful[:, common], scored[:, common])
    if fit is None:
        return used, None, "the likelihood has no maximum"
    return used, *_uncontradicted(fit, *(int(each.sum()) for each in _counts(rows, (0.0,))))


def _uncontradicted(fit: Extrapolated, harmful: int, scored: int) -> tuple[Extrapolated | None, str]:
    """The line, unless the outputs at alpha 0 are improbable under it."""
    error = math.hypot(fit.standard_error, math.sqrt(fit.rate * (1 - fit.rate) / scored)) if scored else 0.0
    if error and abs(fit.rate - harmful / scored) > _DOUBTFUL * error:
        said = f"the line gives {100 * fit.rate:.1f} % at alpha 0"
        return None, f"{said}, where {harmful} of {scored} outputs are harmful"
    return fit, ""


def _counts(rows: Sequence[Row], alphas: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Harmful and scored outputs as (prompts, alphas)."""
    column = {float(alpha): place for place, alpha in enumerate(alphas)}
    number = {name: place for place, name in enumerate(dict.fromkeys(row["prompt_id"] for row in rows))}
    harmful, scored = np.zeros((2, len(number), len(alphas)))
    for row in rows:
        place = column.get(float(row["alpha"]))
        if place is not None:
            scored[number[row["prompt_id"]], place] += 1
            harmful[number[row["prompt_id"]], place] += row["label"] == "harmful"
    return harmful, scored


def _behaviours(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["behaviour"] for row in rows))


def _untrusted(weighed: Weighed, harmful: int) -> str | None:
    """Why the estimate is not quoted."""
    if not harmful:
        return "no output at any alpha is harmful, so that there is nothing to weigh"
    if harmful < LEAST_HARMFUL:
        return f"{harmful} harmful outputs are too few to judge their weights; k-hat needs {LEAST_HARMFUL}"
    khat = _khat(weighed)
    if khat is None:
        return "k-hat cannot be fitted: too few weights exceed the rest"
    return f"k-hat {khat:.2f} is above {KHAT_LIMIT:g}" if khat > KHAT_LIMIT else None


def _khat(weighed: Weighed) -> float | None:
    """The larger of the k-hats of all weights and of the harmful outputs' weights."""
    both: list[Spread | None] = [weighed.every, weighed.harmful]
    khats = [each.khat for each in both if each is not None]
    known = [khat for khat in khats if khat is not None]
    return max(known) if len(known) == len(khats) else None


def _importance(weighed: Weighed | None, n: int, harmful: int, plain: int, withheld: str | None) -> dict[str, Any]:
    khat = _khat(weighed) if weighed else None
    about = {
        "n": n,
        "harmful": harmful,
        "ess": weighed.every.ess if weighed else None,
        "largest_weight_share": weighed.every.largest_share if weighed else None,
        "harmful_ess": weighed.harmful.ess if weighed and weighed.harmful else None,
        # A tail of equal weights is no tail; JSON has no infinity for it.
        "khat": khat if khat is not None and math.isfinite(khat) else None,
        "withheld": withheld,
    }
    if weighed is None or withheld is not None:
        return {"rate": None, "low": None, "high": None, **about}
    low, high = score_interval(weighed.rate, weighed.standard_error, plain)
    return {"rate": min(weighed.rate, 1.0), "low": low, "high": high, **about}


def _path(estimate: tuple[float, float] | None, alphas: Sequence[float], withheld: str | None) -> dict[str, Any]:
    if estimate is None:
        return {"rate": None, "low": None, "high": None, "alphas": list(alphas), "withheld": withheld}
    low, high = logit_interval(*estimate)
    return {"rate": estimate[0], "low": low, "high": high, "alphas": list(alphas), "withheld": None}
