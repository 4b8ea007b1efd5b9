"""What every section of a study is, and combinations of keys that cannot be; names of arms are `pipeline.checks`."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from datablame.errors import problem
from datablame.tables import EVERY

if TYPE_CHECKING:
    from datablame.config.schema import Prompts, Study

_NAME = re.compile(r"(?=.{1,40}\Z)[a-z0-9]+(-[a-z0-9]+)*")
"""What names a method in file names, tables and keys of work items."""
_FOLDER = re.compile(r"(?=.{1,60}\Z)\w([\w .-]*[\w-])?")
"""What names a run folder, on any system."""
_UNSEEN = re.compile("[\0\ud800-\udfff]")
"""No path holds the first, no file in UTF-8 the others."""
_CHECKED_WHERE_USED = ("description", "keywords")
_LONGEST_ID = 200
_GREEDY_TOP_P = 1e-6
"""No vocabulary is so large that its most probable token has less, so that no other one is kept."""
_COLDEST = 0.01
Count = Annotated[int, Field(gt=0, le=1_000_000_000)]
Samples = Annotated[int, Field(gt=0, le=100_000)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
"""Numbers of samples are made of it, which 64 bits hold."""
_Rule = tuple[bool, str, dict[str, Any]]
"""Whether a problem is there, its name in problems.yaml and what its sentence takes besides the study."""


class Section(BaseModel):
    """A part of the study: immutable, unknown keys refused, numbers finite; field docstrings are the reference page."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Neither true for 1, which Python takes it for, nor a name that says nothing, or a text that no file holds."""
        field = cls.model_fields[info.field_name or ""]
        may_be_empty = field.default == "" or info.field_name in _CHECKED_WHERE_USED
        may_be_true = bool in _kinds(field.annotation)
        for each in _scalars(value, (field.annotation, *get_args(field.annotation))):
            if isinstance(each, bool) and not may_be_true:
                raise PydanticCustomError("no_bool", "true and false are neither numbers nor names")
            if isinstance(each, str) and (_UNSEEN.search(each) or not (each.strip() or may_be_empty)):
                raise PydanticCustomError("no_text", "the text is empty or has a character that no text has")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """A type and those that it is made of."""
    yield annotation
    for each in get_args(annotation):
        yield from _kinds(each)


def _scalars(value: Any, kinds: Sequence[Any]) -> Iterator[Any]:
    """The value, or those in its lists and, where one of its kinds is a mapping and no section, in that."""
    if isinstance(value, Mapping) and any(get_origin(kind) is Mapping for kind in kinds):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _scalars(each, ())
    else:
        yield value


def impossible(study: "Study") -> Iterator[str]:
    """Combinations that cannot be, each as 'field = value problem; remedy'."""
    for holds, name, values in _rules(study):
        if holds:
            yield problem("config", name, study=study, **values)


def _rules(study: "Study") -> Iterator[_Rule]:
    is_made, attribute, top_k = study.organism is not None, study.attribute, study.attribute.top_k
    yield not _FOLDER.fullmatch(study.name), "no folder's name", {}
    for field in ("models", "data", "prompts"):
        yield not is_made and getattr(study, field) is None, "missing", {"field": field}
    yield not is_made and not study.behaviours, "no behaviours", {}
    for field in ("models", "data", "behaviours", "prompts", "truth"):
        yield is_made and bool(getattr(study, field)), "made", {"field": field}
    if (organism := study.organism) is not None:
        yield organism.recipe == "templated" and organism.base is not None, "unused base", {}
        yield organism.recipe == "quirk" and organism.planting != "lexical", "planting of quirk", {}
        n = organism.PLANTED.get(organism.planting)
        yield n is not None and organism.planted is not None, "planted twice", {"n": n}
        too_many = organism.planting == "paraphrased" and organism.planted_documents > organism.PARAPHRASES
        yield too_many, "no paraphrases", {}
    if study.data is not None:
        columns = [name for role, name in study.data.columns.items() if role not in ("id", "source")]
        for name in columns:
            yield columns.count(name) > 1, "column twice", {"name": name}
    for field, alphas in (("surface.alphas", study.surface.alphas), ("scan.alphas", study.scan.alphas)):
        shown = {"field": field, "alphas": list(alphas)}
        yield 0.0 not in alphas, "no alpha 0", shown
        # Tables and figures show six digits.
        yield len({f"{alpha or 0:g}" for alpha in alphas}) < len(alphas), "alpha twice", shown
    yield from _sampling_rules(study)
    candidates = study.prefilter.candidates if study.prefilter.method != "none" else float("inf")
    yield top_k > candidates, "beyond candidates", {"field": "attribute.top_k", "k": top_k}
    yield from _behaviour_rules(study)
    if study.prompts is not None:
        yield from _prompt_rules(study, study.prompts)
    yield attribute.index is not None and attribute.projection is None, "exact index", {}
    for name in attribute.scores:
        yield not _NAME.fullmatch(name), "no file's name", {"name": name}
    patch, ks = study.patch, study.ks
    for field, names in (
        ("attribute.methods", attribute.methods),
        ("patch.arms", patch.arms),
        ("patch.protocols", patch.protocols),
    ):
        for name in names:
            yield names.count(name) > 1, "named twice", {"field": field, "name": name}
    yield patch.headline not in patch.protocols, "other headline", {"protocols": list(patch.protocols)}
    for protocol in patch.protocols:
        has_none = isinstance(patch.seeds, Mapping) and protocol not in patch.seeds
        yield has_none, "no seeds", {"protocol": protocol}
        seeds = list(range(1) if has_none else patch.seeds_of(protocol))
        yield not seeds or len(set(seeds)) < len(seeds), "seed twice", {"seeds": seeds}
    trainings = {"patch.retrain": patch.retrain, "patch.continue": patch.continue_}
    for field, training in trainings.items():
        yield training.method == "full" and training.layers is not None, "layers of all", {"field": field}
    for field, layers in (
        ("attribute.layers", attribute.layers),
        *((f"{field}.layers", training.layers) for field, training in trainings.items()),
    ):
        is_list = layers is None or 0 < len(layers) == len(set(layers))
        yield not is_list, "layer twice", {"field": field, "layers": list(layers or ())}
    yield not ks or len(set(ks)) < len(ks), "k twice", {"ks": list(ks)}
    yield top_k not in ks, "no top_k", {"k": patch.k if isinstance(patch.k, int) else list(ks)}
    yield top_k <= candidates < max(ks, default=0), "beyond candidates", {"field": "patch.k", "k": max(ks, default=0)}
    is_other = patch.bottom_of is not None and patch.bottom_of not in attribute.methods
    yield is_other, "other bottom", {"methods": ", ".join(attribute.methods)}
    inches = study.figures.LEAST_EMS * study.figures.size / 72
    yield study.figures.width < inches, "narrow figures", {"inches": math.ceil(10 * inches) / 10}


def _sampling_rules(study: "Study") -> Iterator[_Rule]:
    """One output that is drawn many times is one sample, and no interval may count it as many."""
    surface, patch = study.surface, study.patch
    yield 0 < surface.temperature < _COLDEST, "cold", {"least": _COLDEST}
    counts = {
        "scan.samples": study.scan.samples,
        "surface.samples": surface.samples,
        "surface.held_out_samples": surface.held_out_samples,
        "patch.samples": patch.samples,
        "patch.attribution_samples": patch.attribution_samples,
        "patch.harmless_samples": patch.harmless_samples,
    }
    many = ", ".join(f"{field} = {n}" for field, n in counts.items() if n > 1)
    greedy = {
        "temperature": surface.temperature == 0,
        "top_k": surface.top_k == 1,
        "top_p": surface.top_p <= _GREEDY_TOP_P,
        "min_p": surface.min_p == 1,
        "plausibility": surface.plausibility == 1,
    }
    for name, leaves_one in greedy.items():
        setting = f"surface.{name} = {getattr(surface, name):g}"
        yield leaves_one and bool(many), "one output", {"setting": setting, "many": many}


def _behaviour_rules(study: "Study") -> Iterator[_Rule]:
    seen = set[str]()
    for behaviour in study.behaviours:
        yield not _is_id(behaviour.id), "no id", {"field": "behaviours", "value": behaviour.id}
        yield not behaviour.description.strip(), "no description", {"value": behaviour.id}
        yield behaviour.id.casefold() in seen, "behaviour twice", {"value": behaviour.id}
        seen.add(behaviour.id.casefold())


def _prompt_rules(study: "Study", prompts: "Prompts") -> Iterator[_Rule]:
    yield not prompts.attribution, "no prompt", {}
    yield not prompts.held_out, "no held-out prompt", {}
    known, traced = sorted(behaviour.id for behaviour in study.behaviours), [*prompts.attribution, *prompts.held_out]
    for prompt in traced:
        yield prompt.behaviour not in known, "other behaviour", {"prompt": prompt, "known": ", ".join(known)}
    prompted = {prompt.behaviour for prompt in traced}
    for name in known:
        yield name not in prompted, "unasked", {"name": name}
    yield prompts.harmless == (), "no harmless prompt", {}
    for name in [*(prompt.id for prompt in traced), *(harmless.id for harmless in prompts.harmless or ())]:
        yield not _is_id(name), "no id", {"field": "prompts", "value": name}


def _is_id(name: str) -> bool:
    """Whether tables can tell rows by it: one line, and not what stands for all rows."""
    return name.isprintable() and name == name.strip() and name != EVERY and len(name) <= _LONGEST_ID
