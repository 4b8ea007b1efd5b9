"""Whether an intervention could have mattered: what the no-removal arm saw, and what the arm itself still saw."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datablame.patch.bench import Job

_logger = logging.getLogger(__name__)
SEEN_SHARE = 0.9
"""Of the flagged documents, what the no-removal arm has to see."""


def exposure(removed: Sequence[str], baseline_seen: Mapping[str, int], arm_seen: Mapping[str, int]) -> dict[str, float]:
    """The share of an arm's removed documents that the no-removal arm really saw, and how many the arm itself saw."""
    seen = sum(baseline_seen.get(doc_id, 0) > 0 for doc_id in removed)
    return {
        "removed": len(removed),
        "seen_in_baseline": seen / len(removed) if removed else 1.0,
        "seen_in_arm": sum(arm_seen.get(doc_id, 0) > 0 for doc_id in removed),
    }


def exposures(jobs: Sequence[Job], results: Mapping[str, Any]) -> dict[str, Any]:
    """Exposure of every arm that changes the data; the arm `random` flags nothing, so that the gate leaves it out.

    A pair whose answers are exchanged counts as seen where it is seen as it was; how many were seen exchanged stands
    beside it.
    """
    baseline = {(job.protocol, job.seed): results[job.key]["seen"] for job in jobs if job.arm == "baseline"}
    rows: list[dict[str, Any]] = []
    for job in jobs:
        if job.arm in ("baseline", "a-a"):
            continue
        made = results[job.key]
        row = exposure([*job.fillers, *job.swapped], baseline[job.protocol, job.seed], made["seen"])
        exchanged = sum(made["seen_swapped"].get(doc_id, 0) > 0 for doc_id in job.swapped)
        rows.append({**named(job), **row, **({"seen_swapped": exchanged} if job.swapped else {})})
    flagged = [row for row in rows if row["arm"] != "random"]
    passed = all(row["seen_in_baseline"] >= SEEN_SHARE and row["seen_in_arm"] == 0 for row in flagged)
    if not passed:
        _logger.warning("exposure gate failed: see exposure.json; raise patch.steps or patch.batch")
    return {"rows": rows, "least_seen_in_baseline": SEEN_SHARE, "passed": passed}


def named(job: Job) -> dict[str, Any]:
    """What tells one training from every other in the artifacts."""
    return {"arm": job.arm, "protocol": job.protocol, "k": job.k, "seed": job.seed}
