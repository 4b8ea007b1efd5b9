"""What made the harmful outputs likelier, as directions in weight space."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.observed import linears
from datablame.attribute.kernels.per_example import Directions, gradient_of, mean_units
from datablame.models.chat import Encoded


def changes(after: Any, before: Any, queries: Sequence[Sequence[Encoded]], blocks: Sequence[int]) -> Directions:
    """For each behaviour's queries the mean of (g_after + g_before) / 2, each scaled to unit norm over all layers.

    g is the gradient of a query's mean NLL at one checkpoint. Along the step d from before to after, the mean
    log-probability of the query's tokens changes by -<(g_after + g_before) / 2, d> (the trapezoidal rule for the
    integral of the gradient along the step: right up to the third power of d).
    """

    def change(query: Encoded) -> dict[str, Float[Tensor, "outputs inputs"]]:
        at_after, at_before = (gradient_of(model, query, blocks) for model in (after, before))
        return {name: (part + at_before[name].to(part.device)) / 2 for name, part in at_after.items()}

    return mean_units(change, queries, linears(after, blocks))
