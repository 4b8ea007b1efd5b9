"""Arms by name: what each one is in the comparison, how it is drawn, and which documents it acts on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datablame.attribute.registry import Method, chosen
from datablame.config.schema import Study
from datablame.engine.registry import Registry
from datablame.tables import ArmInfo, Look, Role

if TYPE_CHECKING:
    from datablame.patch.interventions import FineTuneData


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
    documents: "Callable[[FineTuneData, int, int], Sequence[str]] | None" = None
    """The documents that it acts on, from the data, K and the training seed; None: it leaves the data as they are."""
    drawn: bool = False
    """Whether its documents are drawn anew for each seed, and are nobody's flagged set."""
    depends_on_k: bool = True
    in_family: bool = False
    """Whether Holm adjusts for it."""
    needs_truth: bool = False

    @property
    def trained(self) -> bool:
        """Whether it is trained at all: the after model is not."""
        return self.role != "after"

    def info(self, label: str | None) -> ArmInfo:
        """As a row of the tables, under the label that its method had in this run."""
        return ArmInfo(
            self.name,
            label or self.label,
            self.role,
            self.depends_on_k,
            self.in_family,
            self.target,
            self.look,
            needs_truth=self.needs_truth,
        )


ARMS: Registry[ArmKind] = Registry("arm", "patch.arms", "datablame.patch.arms", "datablame.arms")


def arm_kinds(study: Study) -> list[ArmKind]:
    """The study's arms in its order; one that is no registered arm is a method's flagged set.

    Raises:
        RequestError: an arm is neither.
    """
    methods = {method.name: method for method in chosen(study.attribute)}
    kinds = []
    for name in study.patch.arms:
        registered = ARMS.all().get(name)
        kind = _of_method(methods[name]) if registered is None and name in methods else ARMS.named(name)
        kinds.append(replace(kind, target=kind.target.format(bottom_method=bottom_method(study))))
    return kinds


def bottom_method(study: Study) -> str | None:
    """The method whose last documents an arm may remove: `patch.bottom_of`, else the first arm that is no control."""
    methods = {method.name: method for method in chosen(study.attribute) if method.name not in ARMS.all()}
    first = (name for name in study.patch.arms if name in methods and not methods[name].control)
    return study.patch.bottom_of or next(first, None)


def _of_method(method: Method) -> ArmKind:
    return ArmKind(
        method.name,
        method.label,
        "method",
        method.look,
        f"what {method.name} flagged",
        lambda data, k, _: data.flags.get((method.name, k), ()),
        in_family=not method.confounds,
    )
