"""What every section of a study is, and combinations of keys that cannot be; names of arms are `pipeline.checks`."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from datablame.errors import problem

if TYPE_CHECKING:
    from datablame.config.schema import Prompts, Study

_NAME = re.compile(r"(?=.{1,40}$)[a-z0-9]+(-[a-z0-9]+)*")
"""What names a method in file names, tables and keys of work items."""
_Rule = tuple[bool, str, dict[str, Any]]
"""Whether a problem is there, its name in problems.yaml and what its sentence takes besides the study."""


class Section(BaseModel):
    """A part of the study: immutable, unknown keys refused, field docstrings are the reference page."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def impossible(study: "Study") -> Iterator[str]:
    """Combinations that cannot be, each as 'field = value problem; remedy'."""
    for holds, name, values in _rules(study):
        if holds:
            yield problem("config", name, study=study, **values)


def _rules(study: "Study") -> Iterator[_Rule]:
    is_made, attribute, top_k = study.organism is not None, study.attribute, study.attribute.top_k
    for field in ("models", "data", "prompts"):
        yield not is_made and getattr(study, field) is None, "missing", {"field": field}
    yield not is_made and not study.behaviours, "no behaviours", {}
    for field in ("models", "data", "behaviours", "prompts", "truth"):
        yield is_made and bool(getattr(study, field)), "made", {"field": field}
    for field, alphas in (("surface.alphas", study.surface.alphas), ("scan.alphas", study.scan.alphas)):
        yield 0.0 not in alphas, "no alpha 0", {"field": field, "alphas": list(alphas)}
        yield len(set(alphas)) < len(alphas), "alpha twice", {"field": field, "alphas": list(alphas)}
    candidates = study.prefilter.candidates if study.prefilter.method != "none" else float("inf")
    yield top_k > candidates, "beyond candidates", {"field": "attribute.top_k", "k": top_k}
    if study.prompts is not None:
        yield from _prompt_rules(study, study.prompts)
    yield attribute.index is not None and attribute.projection is None, "exact index", {}
    for name in attribute.scores:
        yield not _NAME.fullmatch(name), "no file's name", {"name": name}
    for name in attribute.methods:
        yield attribute.methods.count(name) > 1, "named twice", {"field": "attribute.methods", "name": name}
    patch, ks = study.patch, study.ks
    yield patch.headline not in patch.protocols, "other headline", {"protocols": list(patch.protocols)}
    for name in patch.arms:
        yield patch.arms.count(name) > 1, "named twice", {"field": "patch.arms", "name": name}
    for protocol in patch.protocols:
        has_none = isinstance(patch.seeds, Mapping) and protocol not in patch.seeds
        yield has_none, "no seeds", {"protocol": protocol}
        seeds = list(range(1) if has_none else patch.seeds_of(protocol))
        yield not seeds or len(set(seeds)) < len(seeds), "seed twice", {"seeds": seeds}
    yield not ks or len(set(ks)) < len(ks), "k twice", {"ks": list(ks)}
    yield top_k not in ks, "no top_k", {"k": patch.k if isinstance(patch.k, int) else list(ks)}
    yield top_k <= candidates < max(ks, default=0), "beyond candidates", {"field": "patch.k", "k": max(ks, default=0)}
    is_other = patch.bottom_of is not None and patch.bottom_of not in attribute.methods
    yield is_other, "other bottom", {"methods": ", ".join(attribute.methods)}


def _prompt_rules(study: "Study", prompts: "Prompts") -> Iterator[_Rule]:
    yield not prompts.attribution, "no prompt", {}
    yield not prompts.held_out, "no held-out prompt", {}
    known, traced = sorted(behaviour.id for behaviour in study.behaviours), [*prompts.attribution, *prompts.held_out]
    for prompt in traced:
        yield prompt.behaviour not in known, "other behaviour", {"prompt": prompt, "known": ", ".join(known)}
    yield prompts.harmless == (), "no harmless prompt", {}
    for what in ("id", "text"):
        seen = set[str]()
        for value in (getattr(prompt, what) for prompt in (*traced, *(prompts.harmless or ()))):
            yield value in seen, "prompt twice", {"what": what, "value": value}
            seen.add(value)
