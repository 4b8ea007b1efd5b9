"""One arm, trained alone."""

from typing import Any

from datablame.patch.bench import Bench, Job

from datablame.patch.measure import measure


def measured(bench: Bench, job: Job) -> dict[str, Any]:
    return measure(bench, job)[job.key]
