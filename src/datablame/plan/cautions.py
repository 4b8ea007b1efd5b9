"""What a study should hear before it starts: designs that cannot succeed, and machines that are too small."""

from collections.abc import Iterator, Mapping

from datablame.config import Study
from datablame.machine import memory_bytes
from datablame.plan.counts import Counts
from datablame.plan.detect import Detectable
from datablame.plan.memory import HEADROOM, Memory, longest_prompt_tokens
from datablame.plan.subject import Subject

__all__ = ["cautions_of"]

_LEVEL = 0.05


def cautions_of(
    study: Study,
    subject: Subject,
    counts: Counts,
    memory: Mapping[str, Memory] | None,
    limits: Detectable,
    device_bytes: int,
    workers: int,
) -> list[str]:
    """One line for each, with the field, the value and the remedy."""
    return [
        *_design(study, limits),
        *_patching(study, subject, counts),
        *_context(study, subject),
        *_memory(memory, device_bytes, workers),
    ]


def _design(study: Study, limits: Detectable) -> Iterator[str]:
    headline = study.patch.headline
    if limits.smallest_p is None:
        yield (
            f"patch.seeds: {limits.seeds} for {headline} is too few for a p value; give at least 4, better 5 "
            "(without one nothing can be called significant)"
        )
    elif limits.smallest_adjusted_p is not None and limits.smallest_adjusted_p >= _LEVEL:
        yield (
            f"patch.seeds: with {limits.seeds} for {headline} no p can be below {limits.smallest_p:.4f}, times "
            f"{len(limits.family)} methods {limits.smallest_adjusted_p:.3f}, which is not below .05; give more seeds "
            "or fewer methods in patch.arms"
        )


def _patching(study: Study, subject: Subject, counts: Counts) -> Iterator[str]:
    patch = study.patch
    k = patch.k or study.attribute.top_k
    flagging = [name for name in study.attribute.methods if name != "random"]
    flagged = len(flagging) * k * counts.attribution.behaviours
    if flagged > patch.size:
        yield (
            f"patch.size = {patch.size} cannot hold the documents that {len(flagging)} methods may flag ({k} for each "
            f"of {counts.attribution.behaviours} behaviours: {flagged}, or more); raise it or lower patch.k"
        )
    if subject.documents is not None and patch.size >= subject.documents:
        yield (
            f"patch.size = {patch.size} leaves no fillers in a pool of {subject.documents} documents; "
            "lower it or enlarge the pool"
        )
    for protocol in patch.protocols:
        training = patch.training_of(protocol)
        assert training.steps is not None
        assert training.batch is not None
        if training.steps * training.batch < patch.size:
            yield (
                f"patch.batch = {training.batch} for {protocol}: {training.steps} steps see "
                f"{training.steps * training.batch} of the {patch.size} documents of the fine-tune set; give at least "
                f"{-(-patch.size // training.steps)}, or flagged documents may never be seen"
            )


def _context(study: Study, subject: Subject) -> Iterator[str]:
    prompt, new = longest_prompt_tokens(subject), study.surface.max_new_tokens
    for field, checkpoint in (("models.before", subject.before), ("models.after", subject.after)):
        if checkpoint.found is not None and prompt + new > checkpoint.found.shape.context:
            yield (
                f"surface.max_new_tokens = {new} and about {prompt} tokens of the longest prompt are more than the "
                f"context of {checkpoint.found.shape.context} tokens of {field}; lower it or shorten the prompt"
            )


def _memory(memory: Mapping[str, Memory] | None, device_bytes: int, workers: int) -> Iterator[str]:
    remedies = {
        "scan": "lower surface.batch_rows",
        "surface": "lower surface.batch_rows",
        "attribute": "lower attribute.max_tokens, attribute.batch_tokens or the number of behaviours",
        "patch": "lower patch.micro_batch or attribute.max_tokens",
    }
    own_bytes = memory_bytes()
    for phase, need in (memory or {}).items():
        if workers * need.total > HEADROOM * device_bytes:
            own = "" if workers == 1 else f" ({workers} workers; --workers 1 needs {need.total / 1e9:.1f} GB)"
            yield (
                f"{phase} needs about {workers * need.total / 1e9:.1f} GB, here are {device_bytes / 1e9:.1f} GB{own}; "
                f"{remedies[phase]}, or use a larger device"
            )
        if need.beside > HEADROOM * own_bytes:
            yield (
                f"{phase} keeps {need.beside / 1e9:.1f} GB of directions in the machine's {own_bytes / 1e9:.1f} GB; "
                "give fewer attribute.layers or behaviours, or use a larger machine"
            )
