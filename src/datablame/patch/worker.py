"""What the arms of a patch phase share, and a worker's loaded models."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from datablame.config.schema import Training
from datablame.models.blocks import Trunk, trunk_below
from datablame.models.chat import Encoded, Preference
from datablame.models.load import load_model, twin
from datablame.models.pair import study_tokenizer
from datablame.patch.trainings import PatchPlan
from datablame.tables import Protocol
from datablame.world import World


@dataclass
class WorkerState:
    """A worker's loaded models: `trainees` are what each protocol starts from, restored after every training."""

    plan: PatchPlan
    tokenizer: Any
    before: Any
    encoded: dict[str, Any]
    """Of every document that an arm trains on its tokens: `Encoded`, or `Preference` in a pool of pairs."""
    clean: list[Encoded]
    """What perplexity is measured on; of a pair the chosen answer."""
    trainees: dict[Protocol, Any]
    trunks: dict[Protocol, Trunk | None] = field(default_factory=dict)
    """What lies below the adapted blocks, made when a protocol's first training comes."""

    @property
    def world(self) -> World:
        """The study and its pool."""
        return self.plan.world

    def trunk(self, protocol: Protocol, training: Training) -> Trunk | None:
        """The blocks that no adapter touches, run once over all documents of the plan; None where all are trained.

        Preference pairs run the whole model.
        """
        if training.method == "full" or training.layers is None or self.world.pool.pairs:
            return None
        if protocol not in self.trunks:
            documents = list(self.encoded.values())
            self.trunks[protocol] = trunk_below(self.trainees[protocol], min(training.layers), documents)
        return self.trunks[protocol]


def load_worker(plan: PatchPlan) -> WorkerState:
    """Load before and what each protocol starts from; after is loaded only where `continue` trains on top of it."""
    world = plan.world
    before = load_model(world.models.before, device=world.models.device, field="models.before")
    trainees = {protocol: _trainee(world, protocol, before) for protocol in world.study.patch.protocols}
    clean = [e.chosen if isinstance(e, Preference) else e for e in _tokens(world, plan.checks.clean).values()]
    tokenizer = study_tokenizer(world.study)
    return WorkerState(plan, tokenizer, before, _tokens(world, plan.trained_on), clean, trainees)


def _tokens(world: World, ids: Iterable[str]) -> dict[str, Any]:
    """Token ids by document, in the order of `ids`; the pool is read from its beginning to its end."""
    wanted = list(dict.fromkeys(ids))
    rows = sorted(world.pool.row_of[doc_id] for doc_id in wanted)
    by_row = dict(zip(rows, world.pool.encoded(rows), strict=True))
    return {doc_id: by_row[world.pool.row_of[doc_id]] for doc_id in wanted}


def _trainee(world: World, protocol: Protocol, before: Any) -> Any:
    """What a protocol trains. LoRA from before shares its weights: the adapter is in one tree of modules only.

    All weights are trained in float32 and in a copy of their own, since training changes them.
    """
    lora = world.study.patch.training_of(protocol).method == "lora"
    if protocol == "retrain" and lora:
        return twin(before)
    side = "before" if protocol == "retrain" else "after"
    dtype = None if lora else torch.float32
    return load_model(getattr(world.models, side), device=world.models.device, dtype=dtype, field=f"models.{side}")
