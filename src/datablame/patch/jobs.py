"""Every training of a study with its intervention: what each arm changes in the fine-tune set."""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from math import ceil
from typing import NamedTuple

from datablame.patch.arms import Item, draw_random, majority_sources, replaced
from datablame.patch.bench import Job
from datablame.patch.design import trained, training_seeds
from datablame.patch.flagged import Flags, Ranking, last_clusters
from datablame.patch.measure import UNTRAINED_KEY, Together
from datablame.study.checks import CONTROLS
from datablame.study.schema import Study
from datablame.tables import Intervention

_NONE = ("baseline", "a-a")


class Prepared(NamedTuple):
    """A training, what it does to the data, and how many of its fillers are of another source or length band."""

    job: Job
    intervention: Intervention
    loose: int


def targets_of(
    study: Study, rankings: Mapping[str, Ranking], flags: Flags, cluster_of: Mapping[str, int], members: Sequence[str]
) -> Flags:
    """The documents that each arm is about, at every K: flagged, planted, or a method's last."""
    arms = dict.fromkeys(cell for protocol in study.patch.protocols for cell in trained(study, protocol))
    targets: dict[tuple[str, int], Sequence[str]] = {}
    for arm, k in arms:
        if arm == "bottom" and study.patch.bottom_method is not None:
            targets[arm, k] = last_clusters(rankings[study.patch.bottom_method], cluster_of, members, k)
        elif arm not in (*_NONE, "random"):
            targets[arm, k] = flags.get((arm, k), ())
    return targets


def skipped_arms(study: Study, targets: Flags) -> list[str]:
    """Arms that would change nothing although they should; with its K where an arm does so at some K only."""
    empty = [cell for cell, ids in targets.items() if not ids]
    found = []
    for arm in study.patch.arms:
        ks = [k for name, k in empty if name == arm]
        everywhere = ks and len(ks) == sum(name == arm for name, _ in targets)
        found += [arm] if everywhere else [f"{arm} at K = {k}" for k in ks]
    return found


def jobs_of(
    study: Study, items: Sequence[Item], members: Sequence[str], every: Sequence[str], targets: Flags
) -> list[Prepared]:
    """Every training in the order of running, LoRA first for it takes longer. `every` is all that anything flags.

    Raises:
        RequestError: the pool has too few documents to stand in for those that an arm takes out.
    """
    prepared = []
    for protocol in sorted(study.patch.protocols, key=lambda name: study.patch.training_of(name).method != "lora"):
        for place, seed in enumerate(study.patch.seeds_of(protocol)):
            for arm, k in trained(study, protocol):
                if not targets.get((arm, k), True):
                    continue
                change = _change(study, items, members, every, targets, (arm, k), seed)
                own = training_seeds(study, protocol, arm)[place]
                job = Job(arm, protocol, k, own, change.fillers, change.swapped)
                prepared.append(Prepared(job, change.intervention, change.loose))
    return prepared


def work_items(study: Study, jobs: Sequence[Job], finished: Collection[str]) -> dict[str, Together | None]:
    """What workers take: trainings, adapters of one protocol and seed together, and the untrained model's side checks.

    `finished` jobs are left out; beside one that is not they are still trained. Which jobs are together depends on the
    study alone.
    """
    items: dict[str, Together | None] = {}
    for (protocol, _), group in groupby(jobs, lambda job: (job.protocol, job.seed)):
        own = list(group)
        parts = ceil(len(own) / study.patch.side_by_side(protocol))
        for number in range(parts):
            part = own[len(own) * number // parts : len(own) * (number + 1) // parts]
            done = frozenset(job.key for job in part) & frozenset(finished)
            if len(done) < len(part):
                items[part[0].key] = Together(tuple(part), done)
    if UNTRAINED_KEY not in finished:
        items[UNTRAINED_KEY] = None
    return items


class _Change(NamedTuple):
    intervention: Intervention
    fillers: Mapping[str, str]
    swapped: tuple[str, ...]
    loose: int


def _change(
    study: Study,
    items: Sequence[Item],
    members: Sequence[str],
    every: Sequence[str],
    targets: Flags,
    cell: tuple[str, int],
    seed: int,
) -> _Change:
    arm, k = cell
    if arm in _NONE:
        return _Change("none", {}, (), 0)
    kind, gone, barred = study.patch.intervention, targets.get(cell, ()), frozenset[str]()
    if arm == "random":
        gone = _drawn(study, items, members, targets, k, seed)
    elif kind == "drop-source":
        gone, barred = _of_sources(items, members, gone)
    if kind == "swap":
        chosen = set(gone)
        return _Change("swap", {}, tuple(doc_id for doc_id in members if doc_id in chosen), 0)
    replacement = replaced(items, members, every, gone, study.seed, barred)
    return _Change("remove" if arm == "random" else kind, replacement.fillers, (), replacement.loose)


def _drawn(
    study: Study, items: Sequence[Item], members: Sequence[str], targets: Flags, k: int, seed: int
) -> Sequence[str]:
    """As many documents as methods act on at this K; where whole sources go, drawn without a look at the source."""
    flagged = {arm: ids for (arm, own), ids in targets.items() if arm not in CONTROLS and own == k and ids}
    flagged = flagged or {arm: ids for (arm, own), ids in targets.items() if own in (0, k) and ids}
    if study.patch.intervention == "drop-source":
        flagged = {arm: _of_sources(items, members, ids)[0] for arm, ids in flagged.items()}
        items = [item._replace(source="") for item in items]
    return draw_random(items, members, flagged, study.seed, seed)


def _of_sources(
    items: Sequence[Item], members: Sequence[str], flagged: Sequence[str]
) -> tuple[list[str], frozenset[str]]:
    """The members from the sources that hold most of the flagged documents, and these sources."""
    source_of = {item.doc_id: item.source for item in items}
    sources = majority_sources([source_of[doc_id] for doc_id in flagged if doc_id in source_of])
    return [doc_id for doc_id in members if source_of[doc_id] in sources], sources
