"""Steps of Adam in a short LoRA training from before, for each document, beside the harmful outputs': LESS.

The warm-up is one training, in one item: at each of its checkpoints it leaves the adapter, Adam's moments and the
queries' directions. Its documents are drawn by a hash of their ids, so that they do not hang on the pool's order.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.loop import WorkerState, save, saved, shards
from datablame.attribute.registry import Collecting, Inquiry, Passes, WorkItem, provider
from datablame.config.attribute import Warmup
from datablame.engine.phase import Work
from datablame.errors import RequestError
from datablame.seeds import stream_key
from datablame.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from datablame.attribute.kernels.per_example import Queries
    from datablame.models.training import Recipe

_WARMUP = "warmup"
_BATCH, _RISING_SHARE = 16, 0.03


class WarmupGradients(NamedTuple):
    """sum_t eta_t cos(Adam's step for d at t, g_t(q)), averaged over a behaviour's queries; how the warm-up went."""

    scores: NDArray[np.float64]
    """Of shape (documents, behaviours)."""
    documents: int
    steps: int
    learning_rates: tuple[float, ...]
    """eta_t, the mean over the steps up to each checkpoint since the one before; none where the warm-up diverged."""


def _check(world: World, _: Work) -> None:
    """RequestError where `before` has experts, whose adapters hold the factors of several matrices in one."""
    from datablame.models.load import load_config
    from datablame.models.lora import targets_of
    from datablame.models.pair import without_weights

    try:
        config = load_config(world.models.before, field="models.before")
    except RequestError:
        return  # An organism that is not made yet; a checkpoint that cannot be had is refused by the world.
    if targets_of(without_weights(config), None).parameters:
        raise RequestError(
            f"attribute.methods = less cannot be had of models.before = {world.models.before.path}, which has experts; "
            "leave the method out"
        )


def _passes(world: World, _: Collection[type]) -> Passes:
    """One at the end of each epoch, and the training's own over its share of the documents."""
    warmup = world.study.attribute.warmup
    return Passes(backward=warmup.epochs + math.ceil(warmup.epochs * warmup.share))


@provider("warmup", WarmupGradients, check=_check, passes=_passes)
def warmup_gradients(inquiry: Inquiry) -> Collecting:
    """First the warm-up, then shards of documents, each at all of its checkpoints."""
    serves, rows = (WarmupGradients,), inquiry.rows(WarmupGradients)
    first = yield {_WARMUP: WorkItem(partial(_warmup, inquiry.encoded_by_behaviour()), serves)}
    told, parts = first[_WARMUP], shards("warmup-documents", rows)
    if not told["learning_rates"]:
        unknown = np.full((len(inquiry.scored), len(inquiry.behaviours)), np.nan)
        return {WarmupGradients: WarmupGradients(unknown, told["documents"], told["ends"][-1], ())}
    yield {
        key: WorkItem(partial(_item, key, shard.tolist(), told["learning_rates"], told["ends"]), serves)
        for key, shard in parts.items()
    }
    scores = inquiry.spread(rows, saved(inquiry, parts)["scores"])
    rates = tuple(told["learning_rates"])
    return {WarmupGradients: WarmupGradients(scores, told["documents"], told["ends"][-1], rates)}


def chosen_rows(ids: Sequence[str], seed: int, share: float) -> list[int]:
    """The documents of the warm-up, this share of all but at least a batch, in the order of their keys."""
    n = max(math.ceil(share * len(ids)), min(_BATCH, len(ids)))
    return sorted(range(len(ids)), key=lambda row: stream_key("warm-up", seed, ids[row]))[:n]


def recipe_of(settings: Warmup, documents: int) -> "Recipe":
    """So many epochs over the documents, or more where that would be under the least steps; each epoch is as long."""
    from datablame.models.training import Recipe

    steps = settings.epochs * max(math.ceil(documents / _BATCH), math.ceil(settings.least_steps / settings.epochs))
    rising = math.ceil(_RISING_SHARE * steps)
    return Recipe(steps, _BATCH, settings.learning_rate, warmup_steps=rising, weight_decay=0.0)


def _warmup(queries: "Queries", state: WorkerState) -> dict[str, Any]:
    """Train, and leave a file for each checkpoint; the result says how long and how fast, of one that diverged not."""
    from datablame.attribute.kernels.lora_gradients import by_side, lora_directions, lora_projection
    from datablame.models.chat import answers
    from datablame.models.lora import adapted, factors_of, set_factors
    from datablame.models.training import data_order, learning_rate_share, train

    world, attribute = state.world, state.world.study.attribute
    (model,) = state.models("before", dtype=attribute.dtype)
    chosen = chosen_rows(world.pool.ids, world.seed, attribute.warmup.share)
    examples = [answers(document)[0] for document in world.pool.encoded(chosen)]
    recipe = recipe_of(attribute.warmup, len(examples))
    ends = [recipe.steps * (n + 1) // attribute.warmup.epochs for n in range(attribute.warmup.epochs)]
    kept: list[dict[str, Tensor]] = []
    with adapted(model, attribute.warmup.rank, None, stream_key("warm-up adapter", world.seed)) as adapter:
        factors = by_side(factors_of(adapter))

        def keep(step: int, optimizer: Any) -> None:
            if step + 1 not in ends:
                return
            kept.append({})
            for name, factor in factors.items():
                adam = optimizer.state[factor]
                parts = {"factor": factor, "first": adam["exp_avg"], "second": adam["exp_avg_sq"]}
                kept[-1] |= {f"{kind} {name}": part.detach().to("cpu", copy=True) for kind, part in parts.items()}

        order = data_order([len(each.ids) for each in examples], recipe, stream_key("warm-up order", world.seed))
        train(model, examples, order, recipe, keep)
        if not all(bool(part.isfinite().all()) for tensors in kept for part in tensors.values()):
            return {"documents": len(examples), "ends": ends, "learning_rates": []}
        projection = lora_projection(adapter, attribute.projection)
        for number, tensors in enumerate(kept):
            set_factors(adapter, _factors(tensors, "factor"))
            towards = lora_directions(adapter, queries, projection, _blocks(model))
            tensors |= {f"direction {name}": part for name, part in towards.items()}
            save(state.folder / f"{_WARMUP}-{number}.safetensors", tensors, "the queries")
    shares = [learning_rate_share(step, recipe) for step in range(recipe.steps)]
    spans = zip([0, *ends], ends, strict=False)
    rates = [recipe.learning_rate * sum(shares[start:end]) / (end - start) for start, end in spans]
    return {"documents": len(examples), "ends": ends, "learning_rates": rates}


def _item(key: str, rows: list[int], rates: list[float], ends: list[int], state: WorkerState) -> None:
    """The documents' scores: cosines at every checkpoint, weighted by its learning rate and added up."""
    from safetensors.torch import load_file

    from datablame.attribute.kernels.lora_gradients import AdamMoments, AdamSettings, adam_cosines, lora_projection
    from datablame.models.lora import adapted, set_factors
    from datablame.models.optimizer import EPSILON
    from datablame.models.training import BETAS

    settings, documents = state.world.study.attribute, state.world.pool.encoded(rows)
    (model,), scores = state.models("before", dtype=settings.dtype), []
    with adapted(model, settings.warmup.rank, None, 0) as adapter:
        projection = lora_projection(adapter, settings.projection)
        for number, (rate, steps) in enumerate(zip(rates, ends, strict=True)):
            tensors = load_file(state.folder / f"{_WARMUP}-{number}.safetensors")
            set_factors(adapter, _factors(tensors, "factor"))
            moments = AdamMoments(_factors(tensors, "first"), _factors(tensors, "second"), steps)
            towards = _of_kind(tensors, "direction")
            adam, blocks = AdamSettings(*BETAS, EPSILON), _blocks(model)
            cosines = adam_cosines(
                adapter, documents, towards, moments, adam, projection, blocks, settings.batch_tokens
            )
            scores.append(rate * cosines)
    save(state.folder / f"{key}.safetensors", {"scores": sum(scores[1:], scores[0])}, f"the gradients of {key}")


def _factors(tensors: "Mapping[str, Tensor]", kind: str) -> "dict[str, tuple[Tensor, Tensor]]":
    """What a file holds of one kind for A and B of each layer."""
    own = _of_kind(tensors, kind)
    layers = [name.removesuffix(" A") for name in own if name.endswith(" A")]
    return {layer: (own[f"{layer} A"], own[f"{layer} B"]) for layer in layers}


def _of_kind(tensors: "Mapping[str, Tensor]", kind: str) -> "dict[str, Tensor]":
    return {name.removeprefix(f"{kind} "): each for name, each in tensors.items() if name.startswith(f"{kind} ")}


def _blocks(model: Any) -> range:
    from datablame.models.blocks import decoder_blocks

    return range(len(decoder_blocks(model)))
