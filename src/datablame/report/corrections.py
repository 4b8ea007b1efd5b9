"""Rates with the classifier's errors taken out, where a calibration says what they are."""

from typing import Any

from datablame.report.artifacts import Artifacts, Row
from datablame.seeds import stream_key
from datablame.stats.calibration import Accuracy, Corrected, corrected_rate


def corrected(found: Artifacts, harmful: int, scored: int) -> Corrected | None:
    """Rogan and Gladen's rate of `harmful` among `scored`; None without a calibration or a scored output.

    One stream serves all rates: they share the calibration, and so its draws.
    """
    if found.calibration is None or not scored:
        return None
    key = stream_key("calibration", "rates", found.study.seed)
    return corrected_rate(harmful, scored, Accuracy(**found.calibration["counts"]), key)


def with_corrections(found: Artifacts) -> list[dict[str, Any]]:
    """The rows of `rates`; with a calibration each one has its corrected rate and interval beside the raw ones."""
    if found.calibration is None:
        return [dict(row) for row in found.rates]
    return [{**row, **_columns(found, row)} for row in found.rates]


def _columns(found: Artifacts, row: Row) -> dict[str, float | None]:
    values = corrected(found, row["harmful"], row["n"] - row["unscored"]) or (None, None, None)
    return dict(zip(("corrected", "corrected_low", "corrected_high"), values, strict=True))
