"""Does removal work because long documents go? As many of the longest ones are taken out."""

from collections.abc import Sequence

from datablame.patch.registry import ARMS, ArmKind
from datablame.patch.trainings import FineTuneData
from datablame.tables import look_of


def longest(data: FineTuneData, k: int, seed: int) -> Sequence[str]:
    """The first K documents of the fine-tune set by length, ties by id."""
    characters = {item.doc_id: item.characters for item in data.items}
    return sorted(data.members, key=lambda doc_id: (-characters[doc_id], doc_id))[:k]


ARMS.add(
    "longest",
    ArmKind(
        "longest",
        label="longest (control)",
        role="control",
        look=look_of("longest"),
        target="the longest documents",
        documents=longest,
    ),
)
