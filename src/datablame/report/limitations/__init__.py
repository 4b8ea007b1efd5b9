"""What a reader must not conclude from a run."""

from datablame.report.limitations.rules import RULES, limitations

__all__ = ["RULES", "limitations"]
