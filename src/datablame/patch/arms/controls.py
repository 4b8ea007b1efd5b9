"""What methods are compared with: the after model, no removal, the same again, chance, the last ranked, the planted."""

from collections.abc import Sequence

from datablame.patch.interventions import FineTuneData
from datablame.patch.registry import ARMS, ArmKind
from datablame.tables import Look


def random(data: FineTuneData, k: int, seed: int) -> Sequence[str]:
    """As many documents as methods act on at this K, matched in source and length; drawn anew for each seed."""
    return data.drawn(k, seed)


def bottom(data: FineTuneData, k: int, _: int) -> Sequence[str]:
    """A method's last K clusters for each behaviour, of those that training sees."""
    return data.last(k)


def oracle(data: FineTuneData, _: int, __: int) -> Sequence[str]:
    """Everything that was planted, duplicates included."""
    return data.planted


for _kind in (
    ArmKind("after", "after", "after", Look("#FFFFFF", "#4A4A4A", "p"), depends_on_k=False),
    ArmKind("baseline", "baseline (no removal)", "baseline", Look("#000000", "#000000", "d"), depends_on_k=False),
    ArmKind("a-a", "baseline again (A/A)", "again", Look("#C9C9C9", "#3F3F3F", "d"), depends_on_k=False),
    ArmKind("random", "random", "random", Look("#8C8C8C", "#6B6B6B", "X"), "random ones", random, drawn=True),
    ArmKind(
        "bottom",
        "bottom (ranked last)",
        "control",
        Look("#CFC6B8", "#7A6E5D", "8"),
        "what {bottom_method} ranks last",
        bottom,
    ),
    ArmKind(
        "oracle",
        "oracle (all planted)",
        "control",
        Look("#F0E442", "#857A00", "*"),
        "everything planted",
        oracle,
        depends_on_k=False,
        needs_truth=True,
    ),
):
    ARMS.add(_kind.name, _kind)
