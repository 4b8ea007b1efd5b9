"""Every training of a study: which arms, at which K, with which seeds; what workers are given of it."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import NamedTuple

from datablame.config.schema import Study
from datablame.patch.interventions import FineTuneData, Intervention, ks_of
from datablame.patch.registry import ArmKind, arm_kinds
from datablame.tables import Prompt, Protocol, Sample
from datablame.world import World

AFTER_KEY = "after"
"""The journal's key of the after model's own side checks."""


class TrainingKey(NamedTuple):
    """What tells one training from every other; K is 0 for an arm that is the same at every K."""

    arm: str
    protocol: Protocol
    k: int
    seed: int

    def __str__(self) -> str:
        """The training's name in journals and file names."""
        return f"{self.protocol}-{self.arm}-k{self.k}-s{self.seed}"


class ArmTraining(NamedTuple):
    """One training with what it changes in the data."""

    key: TrainingKey
    intervention: Intervention


class AdapterGroup(NamedTuple):
    """Trainings of one protocol and seed whose adapters are trained at once.

    The `finished` ones are trained again after an interruption all the same, so that the others end with the same
    bytes, but not measured again.
    """

    trainings: tuple[ArmTraining, ...]
    finished: frozenset[str] = frozenset()

    @property
    def unfinished(self) -> int:
        """How many trainings are still to be measured."""
        return len(self.trainings) - len(self.finished)


class Output(NamedTuple):
    """An output drawn at alpha 0; `stopped` where a stop token, which is not among the ids, ended it."""

    prompt_id: str
    sample: int
    token_ids: tuple[int, ...]
    stopped: bool


def unamplified(samples: Iterable[Sample]) -> list[Output]:
    """The outputs to held-out prompts that were drawn at alpha 0."""
    return [
        Output(sample.prompt_id, sample.index, sample.token_ids, sample.finish_reason == "stop")
        for sample in samples
        if sample.split == "held-out" and sample.alpha == 0
    ]


@dataclass(frozen=True)
class CheckInputs:
    """What the side checks need besides the plan's own prompts: the same for every arm."""

    clean: tuple[str, ...] = ()
    """Documents that no arm trains on."""
    harmless: tuple[Prompt, ...] = ()
    after: tuple[Output, ...] = ()
    """The after model's own outputs, which the surface phase drew."""


@dataclass(frozen=True)
class PatchPlan:
    """The fine-tune set in order, what is measured, what is watched."""

    world: World
    members: tuple[str, ...]
    trained_on: tuple[str, ...]
    """The members and every filler."""
    prompts: tuple[tuple[Prompt, int], ...]
    """Each prompt with its number of samples."""
    alphas: tuple[float, ...]
    watched: frozenset[str]
    """Documents whose exposure is counted: everything that any arm removes."""
    out: Path
    checks: CheckInputs = CheckInputs()


def trainings(world: World) -> list[TrainingKey]:
    """Every training in the order of running, LoRA first for it takes longer."""
    return [key for key, _ in _cells(world.study)]


def arm_trainings(data: FineTuneData) -> list[ArmTraining]:
    """The same with their interventions, without arms that would change nothing although they should.

    Raises:
        RequestError: the pool has too few documents to stand in for those that an arm takes out.
    """
    return [
        ArmTraining(key, data.intervention(kind, key.k, key.seed))
        for key, kind in _cells(data.study)
        if data.targets.get((key.arm, key.k), True)
    ]


def measured_prompts(world: World, focus: Collection[str]) -> list[tuple[Prompt, int]]:
    """Each prompt that arms are asked, with its number of samples; of attribution prompts those in focus."""
    patch = world.study.patch
    return [
        *((prompt, patch.samples) for prompt in world.split("held-out")),
        *((prompt, patch.attribution_samples) for prompt in world.split("attribution") if prompt.id in focus),
    ]


def adapter_groups(
    study: Study, planned: Iterable[ArmTraining], finished: Collection[str]
) -> dict[str, AdapterGroup | None]:
    """What workers take: trainings, adapters of one protocol and seed together, and the after model's side checks.

    `finished` trainings are left out; beside one that is not they are still trained. Which ones are together depends on
    the study alone.
    """
    groups: dict[str, AdapterGroup | None] = {}
    for (protocol, _), group in groupby(planned, lambda each: (each.key.protocol, each.key.seed)):
        own = list(group)
        parts = ceil(len(own) / study.patch.side_by_side(protocol))
        for number in range(parts):
            part = own[len(own) * number // parts : len(own) * (number + 1) // parts]
            done = frozenset(str(each.key) for each in part) & frozenset(finished)
            if len(done) < len(part):
                groups[str(part[0].key)] = AdapterGroup(tuple(part), done)
    if AFTER_KEY not in finished:
        groups[AFTER_KEY] = None
    return groups


def _cells(study: Study) -> list[tuple[TrainingKey, ArmKind]]:
    kinds = arm_kinds(study)
    cells = []
    for protocol in sorted(study.patch.protocols, key=lambda name: study.patch.training_of(name).method != "lora"):
        # The baseline is trained again where the verdict comes from.
        here = [kind for kind in kinds if kind.trained and (kind.role != "again" or protocol == study.patch.headline)]
        seeds = study.patch.seeds_of(protocol)
        for index in range(len(seeds)):
            for kind in here:
                seed = _training_seeds(seeds, kind)[index]
                cells += [(TrainingKey(kind.name, protocol, k, seed), kind) for k in ks_of(kind, study)]
    return cells


def _training_seeds(seeds: Sequence[int], kind: ArmKind) -> Sequence[int]:
    """The seeds of one arm; those of a repeated baseline follow the largest of the others, so that none is shared."""
    beyond = 1 + max(seeds) - min(0, *seeds)
    return [seed + beyond for seed in seeds] if kind.role == "again" else seeds
