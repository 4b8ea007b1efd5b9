"""Attribution methods by name: a function from evidence to one score for each document and behaviour."""

import difflib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from datablame.attribute.brought import brought
from datablame.attribute.evidence import Evidence
from datablame.errors import RequestError
from datablame.study.checks import METHODS
from datablame.study.schema import Attribute

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Needs = Literal["gradients", "changes", "activations", "contrast", "scores", "text", "nothing"]
"""Fields of the evidence: `changes` are among the gradients, `scores` those of the study's other methods."""
Score = Callable[[Evidence], "NDArray[np.float64]"]

_MODULES = (
    "gradient",
    "gradient_diff",
    "activation",
    "activation_diff",
    "llm_judge",
    "ensemble",
    "bm25",
    "embedding",
    "random",
)
_registered: dict[str, "Method"] = {}


@dataclass(frozen=True)
class Method:
    """One way to hold documents responsible."""

    name: str
    label: str
    """What figures and tables call it."""
    description: str
    """One sentence on what is compared with what."""
    needs: Needs
    score: Score
    """Scores of shape (documents, behaviours), higher is more responsible; NaN leaves the document unranked."""
    whole_pool: bool = True
    """Whether it scores every document where no prefilter is set; an expensive one scores the candidates only."""
    standin: bool = False
    """Whether it stands in for a method that cannot run here."""
    control: bool = False
    """Whether it is what a method has to beat: it does not look at the behaviour, or at words alone."""


def method(
    name: str,
    *,
    label: str,
    description: str,
    needs: Needs,
    whole_pool: bool = True,
    standin: bool = False,
    control: bool = False,
) -> Callable[[Score], Score]:
    """Register a function as an attribution method."""

    def register(score: Score) -> Score:
        if name in _registered:
            raise ValueError(f"{name} is registered twice")
        _registered[name] = Method(name, label, description, needs, score, whole_pool, standin, control)
        return score

    return register


def named(name: str) -> Method:
    """The method of that name.

    Raises:
        RequestError: there is none; the message has the names and the nearest one.
    """
    methods = _all()
    if name not in methods:
        near = difflib.get_close_matches(name, methods, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise RequestError(f"attribute.methods = {name} is not a method{meant} Known: {', '.join(methods)}")
    return methods[name]


def chosen(settings: Attribute) -> list[Method]:
    """The methods of a study, those whose scores the user brings among them; `ensemble` ranks what all others rank.

    Raises:
        RequestError: one of them is not known.
    """
    brought_by = settings.scores
    methods = [_brought(name, brought_by[name]) if name in brought_by else named(name) for name in settings.methods]
    voters = [method for method in methods if is_voter(method)]
    return [
        replace(
            method,
            whole_pool=all(voter.whole_pool for voter in voters),
            description=f"{method.description.rstrip('.')}: {', '.join(voter.name for voter in voters)}.",
        )
        if method.needs == "scores"
        else method
        for method in methods
    ]


def is_voter(method: Method) -> bool:
    """Whether it has a vote in `ensemble`."""
    return not method.control and method.needs != "scores"


def _brought(name: str, path: str) -> Method:
    about = f"Scores brought by the user: {PurePath(path).name}."
    return Method(name, f"{name} (brought)", about, "nothing", brought(name, path))


def described() -> list[dict[str, Any]]:
    """Name, label, description, needs and flags of every method, as `datablame methods` prints them."""
    return [
        {
            "name": each.name,
            "label": each.label,
            "description": each.description,
            "needs": each.needs,
            "whole_pool": each.whole_pool,
            "standin": each.standin,
            "control": each.control,
        }
        for each in _all().values()
    ]


@functools.cache
def _all() -> dict[str, Method]:
    for module in _MODULES:
        importlib.import_module(f"datablame.attribute.{module}")
    order = {name: place for place, name in enumerate(METHODS)}
    return dict(sorted(_registered.items(), key=lambda entry: order.get(entry[0], len(order))))
