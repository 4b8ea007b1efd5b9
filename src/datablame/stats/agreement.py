"""Agreement of any number of raters who need not have rated everything."""

from collections.abc import Hashable, Sequence

import numpy as np


def krippendorff_alpha(ratings: Sequence[Sequence[Hashable | None]]) -> float:
    """Krippendorff's alpha of nominal ratings: one row a rater, one column an item, None where nothing was rated.

    alpha = 1 - D_o / D_e = 1 - (n - 1) sum_u [sum_c n_uc (m_u - n_uc) / (m_u - 1)] / sum_c n_c (n - n_c)
    over the items u with m_u >= 2 ratings and the labels c (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability"). NaN where no item has two ratings or only one label was ever given.

    Raises:
        ValueError: the rows differ in length.
    """
    if len({len(row) for row in ratings}) > 1:
        raise ValueError(f"every rater needs one entry an item, not {[len(row) for row in ratings]} entries")
    items = [[label for label in item if label is not None] for item in zip(*ratings, strict=True)]
    items = [item for item in items if len(item) >= 2]
    labels = {label: place for place, label in enumerate(dict.fromkeys(label for item in items for label in item))}
    if len(labels) < 2:
        return float("nan")
    counts = np.zeros((len(items), len(labels)))
    for row, item in zip(counts, items, strict=True):
        for label in item:
            row[labels[label]] += 1
    rated = counts.sum(1, keepdims=True)
    n, given = counts.sum(), counts.sum(0)
    observed = (counts * (rated - counts) / (rated - 1)).sum()
    return float(1 - (n - 1) * observed / (given * (n - given)).sum())
