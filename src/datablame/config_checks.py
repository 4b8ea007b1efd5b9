"""Combinations of keys that cannot be, found before anything runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datablame.config import Prompts, Study

__all__ = ["CONTROLS", "DEFAULT_METHODS", "METHODS", "OUTSIDE_FAMILY", "impossible"]

METHODS = (
    "gradient",
    "gradient-dot",
    "activation",
    "activation-centred",
    "llm-judge",
    "bm25",
    "embedding",
    "random",
    "loss",
    "gradient-norm",
)
"""Attribution methods that ship with datablame; `attribute.registry` holds their code."""

DEFAULT_METHODS = tuple(name for name in METHODS if name != "embedding")
"""Those that need nothing besides the study's own checkpoints."""

CONTROLS = ("untrained", "baseline", "random", "oracle")
"""Arms that are no attribution method's flagged set."""

OUTSIDE_FAMILY = (*CONTROLS, "loss", "gradient-norm")
"""Controls and confounder controls: not in the family that Holm adjusts for."""


def impossible(study: "Study") -> list[str]:
    """Combinations that cannot be, each as 'field = value problem; remedy'."""
    problems = []
    organism, prompts = study.organism, study.prompts
    if organism is None:
        for field in ("models", "data", "prompts"):
            if getattr(study, field) is None:
                problems.append(f"{field} is missing; give it, or an organism that brings it")
        if not study.behaviours:
            problems.append("behaviours is empty; describe at least one, or give an organism")
    else:
        for field in ("models", "data", "behaviours", "prompts", "truth"):
            if getattr(study, field):
                problems.append(f"{field} comes with the organism; remove it, or remove organism")
    if 0.0 not in study.surface.alphas:
        problems.append(f"surface.alphas = {list(study.surface.alphas)} lacks 0, the model as it is; add 0")
    if 0.0 not in study.scan.alphas:
        problems.append(f"scan.alphas = {list(study.scan.alphas)} lacks 0, the model as it is; add 0")
    for name, alphas in (("surface", study.surface.alphas), ("scan", study.scan.alphas)):
        if len(set(alphas)) < len(alphas):
            problems.append(f"{name}.alphas = {list(alphas)} names a value twice; remove it")
    if study.prefilter.method == "bm25" and study.attribute.top_k > study.prefilter.candidates:
        problems.append(
            f"attribute.top_k = {study.attribute.top_k} is more than the {study.prefilter.candidates} candidates; "
            "lower it or raise prefilter.candidates"
        )
    if prompts is not None:
        problems += _prompt_problems(study, prompts)
    if study.patch.headline not in study.patch.protocols:
        problems.append(
            f"patch.headline = {study.patch.headline} is not among patch.protocols = {list(study.patch.protocols)}; "
            "add it or choose another headline"
        )
    for method in study.attribute.methods:
        if method not in METHODS:
            problems.append(f"attribute.methods = {method} is not a method; choose from {', '.join(METHODS)}")
    for arm in study.patch.arms:
        if arm not in CONTROLS and arm not in study.attribute.methods:
            problems.append(
                f"patch.arms = {arm} is neither a control ({', '.join(CONTROLS)}) nor one of attribute.methods; "
                "add the method or drop the arm"
            )
    if "untrained" not in study.patch.arms or "baseline" not in study.patch.arms or "random" not in study.patch.arms:
        problems.append("patch.arms lacks one of untrained, baseline, random; the comparison needs all three")
    if "oracle" in study.patch.arms and organism is None and study.truth is None:
        problems.append("patch.arms = oracle needs planted documents; drop the arm or give truth")
    for protocol in study.patch.protocols:
        if isinstance(study.patch.seeds, Mapping) and protocol not in study.patch.seeds:
            problems.append(f"patch.seeds has no seeds for {protocol}; add them or drop the protocol")
        elif len(set(study.patch.seeds_of(protocol))) < max(1, len(study.patch.seeds_of(protocol))):
            problems.append(
                f"patch.seeds = {list(study.patch.seeds_of(protocol))} is empty or repeats a seed; list distinct ones"
            )
    return problems


def _prompt_problems(study: "Study", prompts: "Prompts") -> list[str]:
    problems = []
    if not prompts.attribution:
        problems.append("prompts.attribution is empty; give at least one prompt")
    if not prompts.held_out:
        problems.append("prompts.held_out is empty; the verdict needs prompts that attribution never saw")
    known = {behaviour.id for behaviour in study.behaviours}
    every = [*prompts.attribution, *prompts.held_out]
    for prompt in every:
        if prompt.behaviour not in known:
            problems.append(
                f"prompts: {prompt.id} names the behaviour {prompt.behaviour}; known: {', '.join(sorted(known))}"
            )
    for what in ("id", "text"):
        seen: set[str] = set()
        for prompt in every:
            value = getattr(prompt, what)
            if value in seen:
                problems.append(f"prompts: {what} {value!r} stands twice; attribution and held-out prompts must differ")
            seen.add(value)
    return problems
