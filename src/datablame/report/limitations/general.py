"""Limits of what a study like this can say at all."""

from collections.abc import Iterable

from datablame.report.artifacts import Artifacts


def planted(found: Artifacts) -> Iterable[str]:
    """A model organism is not the world."""
    if found.study.truth is not None:
        yield (
            f"The causes of {len(found.behaviours)} behaviours were planted in a model organism: that methods find "
            "them here does not say that they find causes that nobody planted."
        )


def stage(found: Artifacts) -> Iterable[str]:
    """Whether the pool made the difference is the user's claim."""
    if found.study.truth is None:
        count = found.pool.get("documents", 0)
        yield (
            f"Of the {count} documents of the pool 0 are known to have made the difference between before and after: "
            "that the pool is the stage in between is the user's claim; where it is not, both protocols measure "
            "re-exposure only."
        )


def re_exposure(found: Artifacts) -> Iterable[str]:
    """Training on from the after model takes away re-exposure, not the first exposure."""
    trained = sum(row["seeds"] for row in found.headline if row["arm"] != "untrained")
    if found.study.patch.headline == "continue" and trained:
        yield (
            f"All {trained} trainings that decide start from the after model, which may have learned from the pool "
            "already: they show what seeing flagged documents again does, not what never seeing them would do."
        )


def scope_of_p(found: Artifacts) -> Iterable[str]:
    """What a p value is about."""
    count = sum(row["p"] is not None for row in found.headline)
    if count:
        yield (
            f"The {count} p value{'' if count == 1 else 's'} of the headline concern these flagged documents, these "
            "prompts and this pool, not a method in general."
        )
