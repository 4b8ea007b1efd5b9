"""Arms by name: what each one is in the comparison, how it is drawn, and which documents it acts on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datablame.attribute.registry import chosen
from datablame.config.schema import Study
from datablame.engine.files import packaged_yaml
from datablame.engine.registry import Registry
from datablame.tables import ArmInfo, Look, Role

if TYPE_CHECKING:
    from datablame.patch.trainings import FineTuneData

Documents = Callable[["FineTuneData", int, int], Sequence[str]]
"""The documents that an arm acts on, from the data, K and the training seed."""


@dataclass(frozen=True)
class ArmKind:
    """One kind of data intervention."""

    name: str
    label: str
    """What figures and tables call it."""
    role: Role
    look: Look
    target: str = ""
    """What it acts on, in words that follow "removing"; `{bottom_method}` stands for the study's."""
    documents: Documents | None = None
    """None: it leaves the data as they are."""
    drawn: bool = False
    """Whether its documents are drawn anew for each seed, and are nobody's flagged set."""
    depends_on_k: bool = True
    in_family: bool = False
    """Whether Holm adjusts for it."""
    needs_truth: bool = False

    def ks(self, study: Study) -> tuple[int, ...]:
        """Every K of the arm; 0 for one that is the same at every K."""
        return study.ks if self.depends_on_k else (0,)

    def info(self, label: str | None) -> ArmInfo:
        """As a row of the tables, under the label that its method had in this run."""
        named = (self.name, label or self.label, self.role)
        return ArmInfo(*named, self.depends_on_k, self.in_family, self.target, self.look, self.needs_truth)


ARMS: Registry[ArmKind] = Registry("arm", "patch.arms", __name__, "datablame.arms")
"""Those that are no method's flagged set: what methods are compared with."""

_DOCUMENTS: dict[str, Documents] = {
    "random": lambda data, k, seed: data.drawn(k, seed),
    "bottom": lambda data, k, _: data.last(k),
    "oracle": lambda data, _, __: data.planted,
}
for _name, _arm in packaged_yaml("datablame.patch", "arms.yaml").items():
    ARMS.add(_name, ArmKind(_name, **{**_arm, "look": Look(*_arm["look"]), "documents": _DOCUMENTS.get(_name)}))


def arm_kinds(study: Study) -> list[ArmKind]:
    """The study's arms in its order; one that is no registered arm is a method's flagged set.

    Raises:
        RequestError: an arm is neither.
    """
    methods = {method.name: method for method in chosen(study.attribute) if method.name not in ARMS.all()}
    kinds = []
    for name in study.patch.arms:
        if of := methods.get(name):
            what, in_family = f"what {name} flagged", not of.confounds
            kind = ArmKind(name, of.label, "method", of.look, what, _flagged_by(name), in_family=in_family)
        else:
            kind = ARMS.named(name)
        kinds.append(replace(kind, target=kind.target.format(bottom_method=bottom_method(study))))
    return kinds


def _flagged_by(method: str) -> Documents:
    return lambda data, k, _: data.flags.get((method, k), ())


def bottom_method(study: Study) -> str | None:
    """The method whose last documents an arm may remove: `patch.bottom_of`, else the first arm that is no control."""
    methods = {method.name: method for method in chosen(study.attribute) if method.name not in ARMS.all()}
    first = (name for name in study.patch.arms if name in methods and not methods[name].control)
    return study.patch.bottom_of or next(first, None)
