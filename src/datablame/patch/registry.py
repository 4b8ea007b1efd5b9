"""Arms by name: what each one is in the comparison, how it is drawn, and which documents it acts on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datablame.attribute.registry import Method, chosen
from datablame.config.schema import Study
from datablame.engine.registry import Registry
from datablame.tables import ArmInfo, Look, Role

if TYPE_CHECKING:
    from datablame.patch.trainings import FineTuneData


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

    def ks(self, study: Study) -> tuple[int, ...]:
        """Every K of the arm; 0 for one that is the same at every K."""
        return study.ks if self.depends_on_k else (0,)

    def info(self, label: str | None) -> ArmInfo:
        """As a row of the tables, under the label that its method had in this run."""
        named = (self.name, label or self.label, self.role)
        return ArmInfo(*named, self.depends_on_k, self.in_family, self.target, self.look, self.needs_truth)


ARMS: Registry[ArmKind] = Registry("arm", "patch.arms", __name__, "datablame.arms")
"""Those that are no method's flagged set: what methods are compared with."""

for _kind in (
    ArmKind("after", "after", "after", Look("#FFFFFF", "#4A4A4A", "p"), depends_on_k=False),
    ArmKind("baseline", "baseline (no removal)", "baseline", Look("#000000", "#000000", "d"), depends_on_k=False),
    ArmKind("a-a", "baseline again (A/A)", "again", Look("#C9C9C9", "#3F3F3F", "d"), depends_on_k=False),
    ArmKind(
        "random",
        "random",
        "random",
        Look("#8C8C8C", "#6B6B6B", "X"),
        "random ones",
        lambda data, k, seed: data.drawn(k, seed),
        drawn=True,
    ),
    ArmKind(
        "bottom",
        "bottom (ranked last)",
        "control",
        Look("#CFC6B8", "#7A6E5D", "8"),
        "what {bottom_method} ranks last",
        lambda data, k, _: data.last(k),
    ),
    ArmKind(
        "oracle",
        "oracle (all planted)",
        "control",
        Look("#F0E442", "#857A00", "*"),
        "everything planted",
        lambda data, _, __: data.planted,
        depends_on_k=False,
        needs_truth=True,
    ),
):
    ARMS.add(_kind.name, _kind)


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


def bottom_method(study: Study) -> str | None:
    """The method whose last documents an arm may remove: `patch.bottom_of`, else the first arm that is no control."""
    methods = {method.name: method for method in chosen(study.attribute) if method.name not in ARMS.all()}
    first = (name for name in study.patch.arms if name in methods and not methods[name].control)
    return study.patch.bottom_of or next(first, None)
