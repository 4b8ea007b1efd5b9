"""What every section of a study is, and combinations of keys that cannot be, found before anything runs.

Names of methods and arms are `pipeline.checks`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from datablame.config.schema import Prompts, Study


_NAME = re.compile(r"(?=.{1,40}$)[a-z0-9]+(-[a-z0-9]+)*")
"""What names a method in file names, tables and keys of work items."""


class Section(BaseModel):
    """A part of the study: immutable, unknown keys refused, field docstrings are the reference page."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def impossible(study: "Study") -> Iterator[str]:
    """Combinations that cannot be, each as 'field = value problem; remedy'."""
    attribute = study.attribute
    yield from _missing(study)
    for name, alphas in (("surface", study.surface.alphas), ("scan", study.scan.alphas)):
        if 0.0 not in alphas:
            yield f"{name}.alphas = {list(alphas)} lacks 0, the model as it is; add 0"
        if len(set(alphas)) < len(alphas):
            yield f"{name}.alphas = {list(alphas)} names a value twice; remove it"
    if study.prefilter.method != "none" and attribute.top_k > study.prefilter.candidates:
        yield (
            f"attribute.top_k = {attribute.top_k} is more than the {study.prefilter.candidates} candidates; "
            "lower it or raise prefilter.candidates"
        )
    if study.prompts is not None:
        yield from _prompt_problems(study, study.prompts)
    if attribute.index is not None and attribute.projection is None:
        yield (
            f"attribute.index = {attribute.index} can only keep projected gradients, exact ones are as large as "
            "the model for each document; set attribute.projection (16, say) or leave the index out"
        )
    for name in attribute.scores:
        if not _NAME.fullmatch(name):
            yield f"attribute.scores.{name} cannot name a file; use at most 40 small letters, digits and single hyphens"
    for method in attribute.methods:
        if attribute.methods.count(method) > 1:
            yield f"attribute.methods names {method} twice; remove it"
    yield from _patch_problems(study)


def _missing(study: "Study") -> Iterator[str]:
    """Of what a study brings itself, or its organism."""
    if study.organism is None:
        for field in ("models", "data", "prompts"):
            if getattr(study, field) is None:
                yield f"{field} is missing; give it, or an organism that brings it"
        if not study.behaviours:
            yield "behaviours is empty; describe at least one, or give an organism"
    else:
        for field in ("models", "data", "behaviours", "prompts", "truth"):
            if getattr(study, field):
                yield f"{field} comes with the organism; remove it, or remove organism"


def _patch_problems(study: "Study") -> Iterator[str]:
    """Of arms, protocols and seeds, and of the numbers of documents that arms remove."""
    patch, top_k, ks = study.patch, study.attribute.top_k, study.ks
    if patch.headline not in patch.protocols:
        yield (
            f"patch.headline = {patch.headline} is not among patch.protocols = {list(patch.protocols)}; "
            "add it or choose another headline"
        )
    for arm in patch.arms:
        if patch.arms.count(arm) > 1:
            yield f"patch.arms names {arm} twice; remove it"
    for protocol in patch.protocols:
        if isinstance(patch.seeds, Mapping) and protocol not in patch.seeds:
            yield f"patch.seeds has no seeds for {protocol}; add them or drop the protocol"
        elif len(set(patch.seeds_of(protocol))) < max(1, len(patch.seeds_of(protocol))):
            yield f"patch.seeds = {list(patch.seeds_of(protocol))} is empty or repeats a seed; list distinct ones"
    if not ks or len(set(ks)) < len(ks):
        yield f"patch.k = {list(ks)} is empty or names a number twice; list distinct ones"
        return
    if top_k not in ks:
        listed = patch.k if isinstance(patch.k, int) else list(ks)
        yield (
            f"patch.k = {listed} lacks attribute.top_k = {top_k}, the number that decides; add it, or change "
            "attribute.top_k"
        )
    if study.prefilter.method != "none" and top_k <= study.prefilter.candidates < ks[-1]:
        yield (
            f"patch.k = {ks[-1]} is more than the {study.prefilter.candidates} candidates; "
            "lower it or raise prefilter.candidates"
        )
    if patch.bottom_of is not None and patch.bottom_of not in study.attribute.methods:
        yield (
            f"patch.bottom_of = {patch.bottom_of} is not one of attribute.methods; add it or name one of "
            f"{', '.join(study.attribute.methods)}"
        )


def _prompt_problems(study: "Study", prompts: "Prompts") -> Iterator[str]:
    if not prompts.attribution:
        yield "prompts.attribution is empty; give at least one prompt"
    if not prompts.held_out:
        yield "prompts.held_out is empty; the verdict needs prompts that attribution never saw"
    known = {behaviour.id for behaviour in study.behaviours}
    every = [*prompts.attribution, *prompts.held_out]
    for prompt in every:
        if prompt.behaviour not in known:
            yield f"prompts: {prompt.id} names the behaviour {prompt.behaviour}; known: {', '.join(sorted(known))}"
    if prompts.harmless is not None and not prompts.harmless:
        yield "prompts.harmless is empty; give at least one, or leave it out for those that ship"
    for what in ("id", "text"):
        seen: set[str] = set()
        for value in (getattr(prompt, what) for prompt in (*every, *(prompts.harmless or ()))):
            if value in seen:
                yield f"prompts: {what} {value!r} stands twice; attribution, held-out and harmless prompts must differ"
            seen.add(value)
