"""Why a label or a score is missing: outcomes that are kept apart and counted."""

from collections import Counter
from collections.abc import Iterable

REFUSED = "the judge refused"
CUT = "the judge's reply was cut"
UNREADABLE = "the judge's reply does not parse"
SILENT = "the judge did not answer"


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each outcome stands there; what follows the first colon is detail."""
    return dict(sorted(Counter(reason.partition(":")[0] for reason in reasons).items()))
