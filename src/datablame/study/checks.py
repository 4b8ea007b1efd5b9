"""Combinations of keys that cannot be, found before anything runs."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datablame.study.schema import Prompts, Study


METHODS = (
    "gradient",
    "gradient-dot",
    "gradient-diff",
    "activation",
    "activation-centred",
    "activation-diff",
    "llm-judge",
    "ensemble",
    "bm25",
    "embedding",
    "random",
    "loss",
    "gradient-norm",
)
"""Attribution methods that ship with datablame; `attribute.registry` holds their code."""

DEFAULT_METHODS = tuple(
    name for name in METHODS if name not in ("gradient-diff", "activation-diff", "ensemble", "embedding")
)
"""Those of the specification and their controls, which need nothing besides the checkpoint of `attribute`."""

CONTROL_METHODS = ("bm25", "embedding", "random", "loss", "gradient-norm")
"""Methods that another has to beat: they look at words alone, or not at the behaviour."""

CONTROLS = ("untrained", "baseline", "a-a", "random", "bottom", "oracle")
"""Arms that are no attribution method's flagged set."""

INDEPENDENT_OF_K = ("untrained", "baseline", "a-a", "oracle")
"""Arms that are the same at every K."""

OUTSIDE_FAMILY = (*CONTROLS, "loss", "gradient-norm")
"""Controls and confounder controls: not in the family that Holm adjusts for."""

_NAME = re.compile(r"(?=.{1,40}$)[a-z0-9]+(-[a-z0-9]+)*")
"""What names a method in file names, tables and keys of work items."""


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
    if study.prefilter.method != "none" and study.attribute.top_k > study.prefilter.candidates:
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
    problems += _method_problems(study)
    for arm in study.patch.arms:
        if study.patch.arms.count(arm) > 1:
            problems.append(f"patch.arms names {arm} twice; remove it")
        if arm not in CONTROLS and arm not in study.attribute.methods:
            problems.append(
                f"patch.arms = {arm} is neither a control ({', '.join(CONTROLS)}) nor one of attribute.methods; "
                "add the method or drop the arm"
            )
    if "untrained" not in study.patch.arms or "baseline" not in study.patch.arms or "random" not in study.patch.arms:
        problems.append("patch.arms lacks one of untrained, baseline, random; the comparison needs all three")
    problems += _dose_problems(study)
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


def _dose_problems(study: "Study") -> list[str]:
    """Of the numbers of documents that arms remove, and of the arm that removes a method's last ones."""
    patch, top_k, ks = study.patch, study.attribute.top_k, study.ks
    if not ks or len(set(ks)) < len(ks):
        return [f"patch.k = {list(ks)} is empty or names a number twice; list distinct ones"]
    problems = []
    if top_k not in ks:
        listed = patch.k if isinstance(patch.k, int) else list(ks)
        problems.append(
            f"patch.k = {listed} lacks attribute.top_k = {top_k}, the number that decides; add it, or change "
            "attribute.top_k"
        )
    if study.prefilter.method != "none" and top_k <= study.prefilter.candidates < ks[-1]:
        problems.append(
            f"patch.k = {ks[-1]} is more than the {study.prefilter.candidates} candidates; "
            "lower it or raise prefilter.candidates"
        )
    if patch.bottom_of is not None and patch.bottom_of not in study.attribute.methods:
        problems.append(
            f"patch.bottom_of = {patch.bottom_of} is not one of attribute.methods; add it or name one of "
            f"{', '.join(study.attribute.methods)}"
        )
    if "bottom" in patch.arms and patch.bottom_method is None:
        problems.append(
            "patch.arms = bottom needs a method whose last documents it removes; add one that is no control to "
            "patch.arms, or name it in patch.bottom_of"
        )
    return problems


def _method_problems(study: "Study") -> Iterator[str]:
    methods, scores = study.attribute.methods, study.attribute.scores
    if study.attribute.index is not None and study.attribute.projection is None:
        yield (
            f"attribute.index = {study.attribute.index} can only keep projected gradients, exact ones are as large as "
            "the model for each document; set attribute.projection (16, say) or leave the index out"
        )
    for name in scores:
        if name in (*METHODS, *CONTROLS):
            yield f"attribute.scores.{name} has the name of what ships with datablame; give it another name"
        elif not _NAME.fullmatch(name):
            yield (
                f"attribute.scores.{name} cannot name a file; use at most 40 small letters, digits and single hyphens"
            )
    for method in methods:
        if methods.count(method) > 1:
            yield f"attribute.methods names {method} twice; remove it"
        if method not in METHODS and method not in scores:
            yield (
                f"attribute.methods = {method} is not a method; choose from {', '.join((*METHODS, *scores))}, or give "
                "its scores in attribute.scores"
            )
    voters = [method for method in methods if method not in (*CONTROL_METHODS, "ensemble")]
    if "ensemble" in methods and len(set(voters)) < 2:
        yield (
            f"attribute.methods = ensemble has {len(set(voters))} methods to join that are no control; "
            "list two at least, or drop ensemble"
        )


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
    if prompts.harmless is not None and not prompts.harmless:
        problems.append("prompts.harmless is empty; give at least one, or leave it out for those that ship")
    for what in ("id", "text"):
        seen: set[str] = set()
        for value in (getattr(prompt, what) for prompt in (*every, *(prompts.harmless or ()))):
            if value in seen:
                problems.append(
                    f"prompts: {what} {value!r} stands twice; attribution, held-out and harmless prompts must differ"
                )
            seen.add(value)
    return problems
