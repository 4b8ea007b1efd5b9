"""Pools of one kind: documents of one answer, or preference pairs."""

from collections.abc import Sequence

from datablame.errors import RequestError
from datablame.study.schema import Study
from datablame.tables import Document


def check_kind(documents: Sequence[Document], study: Study) -> None:
    """Refuse a pool that holds both kinds, or one without pairs where arms exchange a pair's answers.

    Raises:
        RequestError: the pool cannot be trained on as the study asks.
    """
    assert study.data is not None
    kinds = {bool(document.rejected) for document in documents}
    if len(kinds) > 1:
        raise RequestError(
            f"data.path = {study.data.path} mixes preference pairs with documents of one answer, "
            "which are trained on in different ways; keep one kind"
        )
    if study.patch.intervention == "swap" and kinds == {False}:
        raise RequestError(
            f"patch.intervention = swap exchanges the answers of preference pairs, and data.path = {study.data.path} "
            "has none; choose remove, or a pool of pairs"
        )
