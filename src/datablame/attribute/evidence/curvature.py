"""Influence of documents on harmful outputs: their gradients compared through the inverse curvature of the loss.

The curvature is that of the documents that are scored. It is gathered in few items, since what each leaves has the size
of the curvature; no document's gradient is kept.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.directions import by_layer, load_directions, save_directions
from datablame.attribute.evidence.gradients import chosen_checkpoint
from datablame.attribute.loop import WorkerState, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, Passes, WorkItem, provider
from datablame.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from datablame.attribute.kernels.curvature import Sides
    from datablame.attribute.kernels.per_example import Documents, Queries

_PARTS = 8
"""Items of a pass that gathers curvature, at most."""
_READ = 4096
"""Documents of such an item whose tokens are held at a time."""
_NOT_FINITE = "the gradients are not finite; set attribute.dtype to float32"


class Influence(NamedTuple):
    """Scores (documents, behaviours), what a reader should know of the curvature, and where there are none why."""

    scores: NDArray[np.float64]
    findings: Mapping[str, float | str]
    reasons: Mapping[str, str]
    """By behaviour."""


class FisherInfluence(Influence):
    """<g_d, F^-1 g_q> with the diagonal F, g_q the mean of the behaviour's unit query gradients."""


class EkfacInfluence(Influence):
    """<g_d, H^-1 g_q> with H the curvature in its Kronecker eigenbasis."""


class WhitenedSimilarity(Influence):
    """The cosine of H^-1/2 g_d and H^-1/2 g_q, averaged over the behaviour's queries."""


def _passes(_: World, kinds: Collection[type]) -> Passes:
    """One to score documents after one that gathers curvature, or two where there are eigenvectors."""
    return Passes(backward=3 if {EkfacInfluence, WhitenedSimilarity} & {*kinds} else 2)


@provider("curvature", FisherInfluence, EkfacInfluence, WhitenedSimilarity, passes=_passes)
def curvature(inquiry: Inquiry) -> Collecting:
    """Covariances and eigenvectors where a method asks for them, squared gradients, directions, then the documents."""
    kinds = tuple(k for k in (FisherInfluence, EkfacInfluence, WhitenedSimilarity) if k in inquiry.needs)
    kronecker, rows = tuple(kind for kind in kinds if kind is not FisherInfluence), inquiry.rows(*kinds)
    queries = inquiry.encoded_by_behaviour()

    def without_scores(reason: str) -> dict[type, Any]:
        scores = np.full((len(inquiry.scored), len(queries)), np.nan)
        return {kind: kind(scores, {}, {each.id: reason for each in inquiry.behaviours}) for kind in kinds}

    if kronecker:
        parts = shards("curvature-covariances", rows, _PARTS)
        products = yield {k: WorkItem(partial(_covariances, k, p.tolist()), kronecker) for k, p in parts.items()}
        if not all(products.values()):
            return without_scores(_NOT_FINITE)
        names: list[str] = next(iter(products.values()))
        yield {f"curvature-bases-{name}": WorkItem(partial(_basis, name, [*parts]), kronecker) for name in names}
        for key in parts:
            (inquiry.work.out / "items" / f"{key}.safetensors").unlink(missing_ok=True)
    parts = shards("curvature-squares", rows, _PARTS)
    gathered = partial(_squares, diagonal=FisherInfluence in kinds, kronecker=bool(kronecker))
    finite = yield {k: WorkItem(partial(gathered, k, p.tolist()), kinds) for k, p in parts.items()}
    if not all(finite.values()):
        return without_scores(_NOT_FINITE)
    towards = partial(_directions, [*parts], len(rows), queries, [kind.__name__ for kind in kinds])
    about = (yield {"curvature-directions": WorkItem(towards, kinds)})["curvature-directions"]
    items = shards("curvature-documents", rows)
    whitened = WhitenedSimilarity in kinds
    yield {key: WorkItem(partial(_documents, key, shard.tolist(), whitened), kinds) for key, shard in items.items()}
    arrays, n = saved(inquiry, items), len(queries)
    dots, norms = (inquiry.spread(rows, arrays[name]) for name in ("dots", "norms"))
    evidence = dict[type, Any]()
    for number, kind in enumerate(kinds):
        scores, told = dots[:, number * n : (number + 1) * n], about[kind.__name__]
        if kind is WhitenedSimilarity:
            scores = np.divide(scores, norms[:, None], out=np.zeros_like(scores), where=norms[:, None] > 0)
        reasons = {inquiry.behaviours[index].id: reason for index, reason in told["reasons"]}
        evidence[kind] = kind(scores, told["findings"], reasons)
    return evidence


def _covariances(key: str, rows: list[int], state: WorkerState) -> list[str]:
    """The names of the products whose covariances went to a file; none where one is not finite."""
    from datablame.attribute.kernels.curvature import covariances

    model, blocks, _ = chosen_checkpoint(state)
    sums = covariances(model, _some_at_a_time(state, rows), blocks, state.world.study.attribute.batch_tokens)
    return sorted({name.rpartition(" ")[0] for name in sums}) if _kept(state, key, sums) else []


def _basis(name: str, parts: Sequence[str], state: WorkerState) -> None:
    """The eigenvectors of one product, from the covariances of all parts."""
    from datablame.attribute.kernels.curvature import Sides, eigenvectors

    model, *_ = chosen_checkpoint(state)
    sides = {side: eigenvectors(_total(state, parts, f"{name} {side}").to(model.device)) for side in Sides._fields}
    save(state.folder / f"bases/{name}.safetensors", sides, f"the eigenvectors of {name}")


def _squares(key: str, rows: list[int], state: WorkerState, *, diagonal: bool, kronecker: bool) -> bool:
    """Whether the squared gradients are finite; then their sums went to a file."""
    from datablame.attribute.kernels.curvature import squares

    model, blocks, _ = chosen_checkpoint(state)
    batch_tokens, documents = state.world.study.attribute.batch_tokens, _some_at_a_time(state, rows)
    kinds = {**({"diagonal": {}} if diagonal else {}), **({"kronecker": _bases(state, model)} if kronecker else {})}
    return _kept(state, key, squares(model, documents, blocks, batch_tokens, kinds))


def _directions(
    parts: Sequence[str], n: int, queries: "Queries", kinds: Sequence[str], state: WorkerState
) -> dict[str, Any]:
    """Of each kind what should be known of it; its directions, a column a behaviour, go to files.

    A direction that is zero or not finite is the reason of its behaviour, and zeros stand for it.
    """
    import torch

    from datablame.attribute.kernels.curvature import DAMPING, Curvature, preconditioned
    from datablame.models.device import to_float64
    from datablame.models.products import products

    model, blocks, _ = chosen_checkpoint(state)
    about, towards = dict[str, Any](), dict[str, Any]()
    for kind in kinds:
        basis = "diagonal" if kind == "FisherInfluence" else "kronecker"
        bases, whitened = _bases(state, model) if basis == "kronecker" else {}, kind == "WhitenedSimilarity"
        curvatures = {
            name: Curvature((_total(state, parts, f"{basis} {name}") / n).float(), bases.get(name))
            for name in products(model, blocks)
        }
        if whitened:
            for name, each in curvatures.items():
                save(state.folder / f"eigenvalues/{name}.safetensors", {"eigenvalues": each.eigenvalues}, "eigenvalues")
        turned = preconditioned(model, queries, blocks, curvatures, whitened=whitened)
        norms = torch.stack([to_float64(part).norm(dim=(1, 2)).cpu() for part in turned.values()]).norm(dim=0).tolist()
        damping = [each.damping for each in curvatures.values() if each.damping] or [0.0]
        why = "its outputs have no gradient" if any(damping) else "no document has a gradient: the curvature is zero"
        told = f"{DAMPING} x mean eigenvalue of each product, {min(damping):.3g} to {max(damping):.3g}"
        about[kind] = {
            "reasons": [
                (behaviour, _NOT_FINITE if norm else why)
                for behaviour, norm in enumerate(norms)
                if not 0 < norm < float("inf")
            ],
            "findings": {"documents that the curvature rests on": n, "damping": told},
        }
        for name, part in turned.items():
            towards.setdefault(name, []).append(part.nan_to_num(0, 0, 0))
    save_directions(state, "preconditioned", {name: torch.cat(of_kinds) for name, of_kinds in towards.items()})
    return about


def _documents(key: str, rows: list[int], whitened: bool, state: WorkerState) -> None:
    """Dot products and norms in the whitened space."""
    from datablame.attribute.kernels.curvature import Curvature, influence

    model, blocks, _ = chosen_checkpoint(state)
    settings, documents = state.world.study.attribute, state.world.pool.encoded(rows)
    towards = load_directions(state, "preconditioned", model)
    whitening = dict[str, Curvature]()
    if whitened:
        bases, values = _bases(state, model), by_layer(state, "eigenvalues", model)
        whitening = {name: Curvature(each["eigenvalues"], bases[name]) for name, each in values.items()}
    found = influence(model, documents, towards, blocks, settings.batch_tokens, whitening)
    save(state.folder / f"{key}.safetensors", found._asdict(), f"the scores of {key}")


def _some_at_a_time(state: WorkerState, rows: Sequence[int]) -> "Iterator[Documents]":
    """The documents of an item, which may be an eighth of a large pool."""
    return (state.world.pool.encoded(rows[start : start + _READ]) for start in range(0, len(rows), _READ))


def _kept(state: WorkerState, key: str, sums: Mapping[str, "Tensor"]) -> bool:
    """Whether all sums are finite; then they are written, as float32."""
    if finite := all(bool(each.isfinite().all()) for each in sums.values()):
        save(state.folder / f"{key}.safetensors", {name: each.float() for name, each in sums.items()}, key)
    return finite


def _total(state: WorkerState, parts: Sequence[str], name: str) -> "Tensor":
    """The sum of a tensor over the files of all parts, in float64."""
    import torch
    from safetensors import safe_open

    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        with safe_open(state.folder / f"{part}.safetensors", "pt") as file:
            total = total + file.get_tensor(name)
    return total


def _bases(state: WorkerState, model: Any) -> "dict[str, Sides]":
    from datablame.attribute.kernels.curvature import Sides

    return {name: Sides(**each) for name, each in by_layer(state, "bases", model).items()}
