"""EK-FAC of documents with a query: ours against bergson and kronfluence.

Random weights of a known shape, random tokens, documents of one length. Factors are covariances, eigenvectors and
corrected eigenvalues; scores come from factors that are there. First kronfluence's eigenvalues and scores are compared
with ours. bergson scales its gradients otherwise, so that only the cost of its factors is.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gradients import QUARTER, SMALL, SMOLLM2, documents_of, model_of
from measure import Amount, Row, interleaved

from datablame.attribute.kernels.curvature import (
    Curvature,
    Sides,
    covariances,
    eigenvectors,
    influence,
    preconditioned,
    squares,
)
from datablame.models.blocks import decoder_blocks, middle_blocks
from datablame.models.chat import Encoded

_TOLERANCE = 1e-3


def factors(model: Any, documents: list[Encoded], blocks: list[int], batch_tokens: int) -> dict[str, Curvature]:
    """All three passes of ours, in memory."""
    sums = covariances(model, [documents], blocks, batch_tokens)
    names = {name.rpartition(" ")[0] for name in sums}
    bases = {name: Sides(*(eigenvectors(sums[f"{name} {side}"]) for side in Sides._fields)) for name in names}
    found = squares(model, [documents], blocks, batch_tokens, {"ekfac": bases})
    return {name: Curvature((found[f"ekfac {name}"] / len(documents)).float(), bases[name]) for name in names}


def rows(amount: Amount) -> Iterator[Row]:
    """Ratios of CPU time for factors and for scores.

    Raises:
        AssertionError: kronfluence finds other eigenvalues or scores.
    """
    torch.set_num_threads(1 if amount == "reduced" else 2)
    sizes = {"full": (SMOLLM2, 16, 128, 3), "quick": (QUARTER, 16, 128, 2), "reduced": (SMALL, 8, 16, 1)}
    shape, n, tokens, rounds = sizes[amount]
    model = model_of(shape)
    documents = documents_of([tokens] * n, shape.vocabulary)
    (query,) = documents_of([tokens], shape.vocabulary, seed=7)
    blocks, batch = middle_blocks(len(decoder_blocks(model))), tokens * 8
    made = dict[str, Curvature]()

    def our_factors() -> None:
        made.update(factors(model, documents, blocks, batch))

    def our_scores() -> torch.Tensor:
        towards = preconditioned(model, [[query]], blocks, made, whitened=False)
        return influence(model, documents, towards, blocks, batch, {}).dots[:, 0]

    of_factors: dict[str, Callable[[], Any]] = {"ours": our_factors}
    of_scores: dict[str, Callable[[], Any]] = {"ours": our_scores}
    agreed = "not compared"
    our_factors()
    try:
        import peers

        theirs = peers.kronfluence_ekfac(model, documents, query, blocks, batch)
        agreed = agreement(made, our_scores(), theirs.factors(), theirs.scores())
        of_factors["kronfluence"], of_scores["kronfluence"] = theirs
        of_factors["bergson"] = peers.bergson_factors(model, documents, blocks, batch)
    except ImportError as error:
        print(f"a peer is left out ({error}); pip install '.[bench]'", file=sys.stderr)
    for what, contenders in (("factors", of_factors), ("scores", of_scores)):
        times = interleaved(contenders, rounds)
        for name, taken in times.items():
            if name != "ours":
                wall, speed = times["ours"].wall / taken.wall, (n / times["ours"].wall, n / taken.wall)
                note = f"CPU time, {shape.name}'s shape, {len(blocks)} blocks, {n} documents; wall {wall:.2f}; "
                note += f"{speed[0]:.2f} against {speed[1]:.2f} documents a second"
                note += f"; {agreed}" if name == "kronfluence" else ""
                yield Row(f"EK-FAC {what}: {name}", times["ours"].cpu / taken.cpu, note)


def agreement(made: dict[str, Curvature], ours: torch.Tensor, theirs: Any, their_scores: torch.Tensor) -> str:
    """How far kronfluence's corrected eigenvalues and scores are from ours, relative to their size."""
    counts, sums = theirs["num_lambda_processed"], theirs["lambda_matrix"]
    apart = []
    for name, curvature in made.items():
        (key,) = [each for each in sums if each.endswith(f"layers.{name}")]
        other = sums[key].double() / int(counts[key])
        apart.append(float((curvature.eigenvalues - other).norm() / other.norm()))
    # Ours has the query's gradient at unit norm.
    scores = float((ours / ours.norm() - (their_scores / their_scores.norm()).squeeze()).norm())
    assert max(apart) < _TOLERANCE, apart
    assert scores < _TOLERANCE, scores
    return f"eigenvalues differ by {max(apart):.0e}, scores by {scores:.0e}"
