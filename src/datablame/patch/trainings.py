"""Every training of a study: which arms, at which K, with which seeds, and what each does to the fine-tune set."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from math import ceil
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple

from datablame.config.schema import Study
from datablame.engine.phase import Tables
from datablame.patch.fine_tune_set import Item, draw_random, fine_tune_set, majority_sources, replaced
from datablame.patch.registry import ARMS, ArmKind, arm_kinds, bottom_method
from datablame.surface.phase import SampleSpec, sample_specs
from datablame.tables import Candidate, Flag, InterventionKind, Prompt, Protocol, Sample, Score
from datablame.world import World

AFTER_KEY = "after"
"""The journal's key of the after model's own side checks."""


class Intervention(NamedTuple):
    """What an arm does: `fillers` maps removed documents to those in their places, `swapped` are pairs turned round."""

    kind: InterventionKind = "none"
    fillers: Mapping[str, str] = {}
    swapped: tuple[str, ...] = ()
    loose: int = 0
    """Fillers of another source or length band."""

    @property
    def removed(self) -> tuple[str, ...]:
        """What the arm took out, or turned round."""
        return self.swapped or tuple(self.fillers)


@dataclass(frozen=True)
class FineTuneData:
    """What arms act on: the pool, the fine-tune set in the pool's order, and what attribution says of both."""

    study: Study
    kinds: Sequence[ArmKind]
    items: Sequence[Item]
    members: tuple[str, ...]
    flags: Mapping[tuple[str, int], Sequence[str]]
    """Documents by method and K, of every method of the study, with an arm or without."""
    planted: Sequence[str]
    """With their duplicates, where an arm removes them."""
    rankings: Mapping[str, Sequence[str]]
    """By behaviour the documents of `bottom_method`, the most responsible first."""

    @property
    def all_flagged(self) -> list[str]:
        """Everything that any method flags at any K, but for one named as a control is; and what is planted."""
        by_methods = (ids for (method, _), ids in self.flags.items() if method not in ARMS.all())
        return list(dict.fromkeys([*(doc_id for ids in by_methods for doc_id in ids), *self.planted]))

    @cached_property
    def targets(self) -> Mapping[tuple[str, int], Sequence[str]]:
        """The documents that each arm is about at each K; arms that are about none in particular are left out."""
        return {
            (kind.name, k): kind.documents(self, k, 0)
            for kind in self.kinds
            if kind.documents is not None and not kind.drawn
            for k in kind.ks(self.study)
        }

    @property
    def skipped_arms(self) -> list[str]:
        """Arms that would change nothing although they should; with its K where an arm does so at some K only."""
        skipped = []
        for name, cells in groupby(self.targets, itemgetter(0)):
            ks = [k for _, k in cells]
            empty = [k for k in ks if not self.targets[name, k]]
            skipped += [name] if empty == ks else [f"{name} at K = {k}" for k in empty]
        return skipped

    def intervention(self, kind: ArmKind, k: int, seed: int) -> Intervention:
        """What an arm does at one K with one training seed.

        Raises:
            RequestError: the pool has too few documents to stand in for those that it takes out.
        """
        if kind.documents is None:
            return Intervention()
        how, barred = self.study.patch.intervention, frozenset[str]()
        gone = kind.documents(self, k, seed) if kind.drawn else self.targets[kind.name, k]
        if how == "drop-source" and not kind.drawn:
            gone, barred = self._of_sources(gone)
        if how == "swap":
            chosen = set(gone)
            return Intervention("swap", swapped=tuple(doc_id for doc_id in self.members if doc_id in chosen))
        fillers, loose = replaced(self.items, self.members, self.all_flagged, gone, self.study.seed, barred)
        return Intervention("remove" if kind.drawn else how, fillers, (), loose)

    def drawn(self, k: int, seed: int) -> list[str]:
        """As many documents as methods act on at this K; where whole sources go, drawn without a look at the source."""
        roles = {kind.name: kind.role for kind in self.kinds}
        flagged = {arm: ids for (arm, own), ids in self.targets.items() if roles[arm] == "method" and own == k and ids}
        flagged = flagged or {arm: ids for (arm, own), ids in self.targets.items() if own in (0, k) and ids}
        items = self.items
        if self.study.patch.intervention == "drop-source":
            flagged = {arm: self._of_sources(ids)[0] for arm, ids in flagged.items()}
            items = [item._replace(source="") for item in items]
        return draw_random(items, self.members, flagged, self.study.seed, seed)

    def last(self, k: int) -> list[str]:
        """The members in `bottom_method`'s last `k` clusters for each behaviour, but for those that it flags itself.

        A cluster ranks where its first document does.
        """
        cluster_of = {item.doc_id: item.cluster for item in self.items}
        flagged = {cluster_of[doc_id] for doc_id in self.flags.get((bottom_method(self.study) or "", k), ())}
        seen = {cluster_of[doc_id] for doc_id in self.members} - flagged
        orders = (dict.fromkeys(cluster_of[doc_id] for doc_id in ids) for ids in self.rankings.values())
        last = {cluster for order in orders for cluster in [c for c in order if c in seen][-k:]}
        return [doc_id for doc_id in self.members if cluster_of[doc_id] in last]

    def _of_sources(self, flagged: Sequence[str]) -> tuple[list[str], frozenset[str]]:
        """The members from the sources that hold most of the flagged documents, and these sources."""
        source_of = {item.doc_id: item.source for item in self.items}
        sources = majority_sources([source_of[doc_id] for doc_id in flagged if doc_id in source_of])
        return [doc_id for doc_id in self.members if source_of[doc_id] in sources], sources


def fine_tune_data(world: World, tables: Tables) -> FineTuneData | None:
    """What the arms of a study act on; None where nothing is flagged for any of them.

    Raises:
        RequestError: the fine-tune set doesn't hold the flagged documents or leaves too few fillers.
    """
    study, pool = world.study, world.pool
    items = list(map(Item, pool.ids, *map(pool.column, ("source", "characters", "cluster"))))
    flags: dict[tuple[str, int], dict[str, None]] = {}
    for flag in tables.rows(Flag):
        flags.setdefault((flag.method, flag.k), {})[flag.doc_id] = None
    kinds, bottom = arm_kinds(study), bottom_method(study)
    truth = world.truth if world.truth is not None and any(kind.needs_truth for kind in kinds) else {}
    causes = frozenset().union(*truth.values())
    known = {item.cluster for item in items if item.doc_id in causes}
    planted = [item.doc_id for item in items if item.cluster in known]
    rankings: dict[str, list[str]] = {}
    # Only controls ask for them, and there may be one for every document of the pool.
    needed = bottom is not None and any(kind.role == "control" for kind in kinds)
    for score in sorted(tables.rows(Score, method=bottom) if needed else (), key=attrgetter("rank")):
        rankings.setdefault(score.behaviour, []).append(score.doc_id)
    flagged = {cell: list(ids) for cell, ids in flags.items()}
    data = FineTuneData(study, kinds, items, tuple(pool.ids), flagged, planted, rankings)
    if not any(data.targets.values()):
        return None
    candidates = [row.doc_id for row in tables.rows(Candidate)]
    spare = study.patch.intervention != "swap"
    members = fine_tune_set(items, study.patch.size, data.all_flagged, candidates, study.seed, spare=spare)
    return replace(data, members=tuple(members))


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
    finished: bool = False
    """After an interruption: it is trained again, so that those beside it end with the same bytes, but not measured."""
    others: tuple[TrainingKey, ...] = ()
    """Arms that change the data alike under the same protocol and seed: they are this training."""

    @property
    def keys(self) -> tuple[TrainingKey, ...]:
        """Every arm that it is."""
        return (self.key, *self.others)


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
    clean: tuple[str, ...] = ()
    """Documents that no arm trains on."""
    after: tuple[Sample, ...] = ()
    """Of the after model's own outputs, which the surface phase drew, those whose divergence is computed."""


def trainings(study: Study) -> list[TrainingKey]:
    """Every training in the order of running, LoRA first for it takes longer."""
    patch, kinds, keys = study.patch, arm_kinds(study), list[TrainingKey]()
    for protocol in sorted(patch.protocols, key=lambda name: patch.training_of(name).method != "lora"):
        # The baseline is trained again where the verdict comes from, on seeds beyond the largest of the others.
        left_out = {"after"} if protocol == patch.headline else {"after", "again"}
        seeds = patch.seeds_of(protocol)
        beyond = 1 + max(seeds) - min(0, *seeds)
        keys += [
            TrainingKey(kind.name, protocol, k, seed + beyond if kind.role == "again" else seed)
            for seed in seeds
            for kind in kinds
            if kind.role not in left_out
            for k in kind.ks(study)
        ]
    return keys


def arm_trainings(data: FineTuneData) -> list[ArmTraining]:
    """The same with their interventions, without arms that would change nothing although they should.

    Raises:
        RequestError: the pool has too few documents to stand in for those that an arm takes out.
    """
    kinds = {kind.name: kind for kind in data.kinds}
    keys = [key for key in trainings(data.study) if data.targets.get((key.arm, key.k), True)]
    return [ArmTraining(key, data.intervention(kinds[key.arm], key.k, key.seed)) for key in keys]


def measured_prompts(world: World, focus: Collection[str]) -> list[tuple[Prompt, int]]:
    """Each prompt that arms are asked, with its number of samples; of attribution prompts those in focus."""
    patch = world.study.patch
    return [
        *((prompt, patch.samples) for prompt in world.split("held-out")),
        *((prompt, patch.attribution_samples) for prompt in world.split("attribution") if prompt.id in focus),
    ]


def specs_of(prompts: Iterable[tuple[Prompt, int]], alphas: Sequence[float], seed: int) -> list[SampleSpec]:
    """So many samples of each prompt at each alpha; seed s draws the indices from s * n on, to share no noise."""
    return [spec for prompt, n in prompts for spec in sample_specs([prompt], alphas, range(seed * n, (seed + 1) * n))]


def adapter_groups(
    study: Study, planned: Iterable[ArmTraining], finished: Collection[str]
) -> dict[str, tuple[ArmTraining, ...]]:
    """What workers take: adapters of one protocol and seed together, and nothing for the after model's side checks.

    Arms that change the data alike are trained once. A group whose trainings are all finished is left out. Which ones
    are together depends on the study and its flags alone.
    """
    groups: dict[str, tuple[ArmTraining, ...]] = {}
    for (protocol, _), group in groupby(planned, lambda each: (each.key.protocol, each.key.seed)):
        together = tuple(
            each._replace(finished=all(str(key) in finished for key in each.keys)) for each in _distinct(group)
        )
        parts = ceil(len(together) / study.patch.side_by_side(protocol))
        edges = [len(together) * number // parts for number in range(parts + 1)]
        groups |= {str(together[start].key): together[start:end] for start, end in pairwise(edges)}
    left = {key: part for key, part in groups.items() if not all(each.finished for each in part)}
    return left if AFTER_KEY in finished else {**left, AFTER_KEY: ()}


def _distinct(planned: Iterable[ArmTraining]) -> list[ArmTraining]:
    """The trainings of one protocol and seed, those that act on equal data as one, where its first arm stands."""
    distinct: dict[tuple[frozenset[tuple[str, str]], tuple[str, ...]], ArmTraining] = {}
    for each in planned:
        data = frozenset(each.intervention.fillers.items()), each.intervention.swapped
        first = distinct.setdefault(data, each)
        if first is not each:
            distinct[data] = first._replace(others=(*first.others, each.key))
    return list(distinct.values())
