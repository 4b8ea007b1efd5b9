"""What a rule says of the results: one row, whether it is a finding, a limit or a gate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Statement:
    """One rule and its sentence."""

    name: str
    holds: bool | None
    """Whether its condition holds; None where the tables cannot tell."""
    sentence: str
    """What is so, or what is missing, with the numbers that decide."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What the condition rests on, by name."""
