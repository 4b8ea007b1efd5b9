"""What all trainings of a patch phase share, light enough to travel to a worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datablame.tables import Prompt
from datablame.world import World


class Output(NamedTuple):
    """An output drawn at alpha 0; `stopped` where a stop token, which is not among the ids, ended it."""

    prompt_id: str
    sample: int
    token_ids: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True)
class CheckInputs:
    """What the side checks need besides the plan's own prompts: the same for every arm."""

    clean: tuple[str, ...] = ()
    """Documents that no arm trains on."""
    harmless: tuple[Prompt, ...] = ()
    after: tuple[Output, ...] = ()
    """The after model's own outputs, which the surface phase drew."""


@dataclass(frozen=True)
class PatchPlan:
    """The fine-tune set in order, what is measured, what is watched."""

    world: World
    members: tuple[str, ...]
    trained_on: tuple[str, ...]
    """The members and every filler."""
    prompts: tuple[tuple[Prompt, int], ...]
    """Each prompt with its number of samples."""
    alphas: tuple[float, ...]
    watched: frozenset[str]
    """Documents whose exposure is counted: everything that any arm removes."""
    out: Path
    checks: CheckInputs = CheckInputs()
