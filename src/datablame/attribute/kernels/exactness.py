"""How an approximate comparison of gradients ranks documents beside the exact one, on a sample of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.per_example import Similarities, directions, similarities
from datablame.attribute.rankings import rounded
from datablame.errors import PhaseError
from datablame.models.chat import Encoded, Preference
from datablame.models.device import ran_out_of_memory
from datablame.stats.ranking import kendall, spearman


def agreement_with_exact(
    model: Any,
    approximate: Similarities,
    documents: Sequence[Encoded | Preference],
    queries: Sequence[Sequence[Encoded]],
    blocks: Sequence[int],
    batch_tokens: int,
) -> dict[str, Any]:
    """Kendall's tau-b and Spearman's rho of the rounded cosines, a number a behaviour, and their largest difference.

    Exact is the comparison in float32 without projection; the weights are widened for it and narrowed again, which
    loses nothing. Where they do not fit in memory so, there is only `why_not`.
    """
    if any(weight.is_meta for weight in model.parameters()):
        return {"documents": len(documents), "why_not": "some weights are kept off the device"}
    kind = model.dtype
    try:
        model.float()
        exact = similarities(model, documents, directions(model, queries, blocks), blocks, batch_tokens)
    except (PhaseError, MemoryError, RuntimeError) as error:
        if not isinstance(error, PhaseError) and not ran_out_of_memory(error):
            raise
        return {"documents": len(documents), "why_not": "the weights do not fit in memory as float32"}
    finally:
        model.to(kind)
    ours, theirs = (_cosines(each.dots[:, : len(queries)], each.norms) for each in (approximate, exact))
    pairs = [(rounded(a), rounded(b)) for a, b in zip(ours.T.numpy(), theirs.T.numpy(), strict=True)]
    return {
        "documents": len(documents),
        "kendall": [_defined(kendall(*pair)) for pair in pairs],
        "spearman": [_defined(spearman(*pair)) for pair in pairs],
        "largest_difference": float((ours - theirs).abs().max()),
    }


def _defined(value: float) -> float | None:
    """None where one side ranks all documents alike."""
    return value if math.isfinite(value) else None


def _cosines(
    dots: Float[Tensor, "documents behaviours"], norms: Float[Tensor, " documents"]
) -> Float[Tensor, "documents behaviours"]:
    return torch.where(norms[:, None] > 0, dots / norms[:, None], 0)
