"""What a run rests on, with nothing left to resolve: the study, its prompts, the pool, who judges, what models are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datablame.judge.choice import Choice
from datablame.study.schema import Behaviour, Data, Models, Study
from datablame.tables import Prompt, Split
from datablame.world.pool import Pool


@dataclass(frozen=True)
class World:
    """A study as it runs; every phase takes one. Pickling it costs little: the pool goes by its path."""

    root: Path
    """The run folder."""
    study: Study
    """Without an organism, `auto`, branches or tags; `models`, `data` and `prompts` are there."""
    models: Models
    data: Data
    prompts: tuple[Prompt, ...]
    """All splits, harmless ones included."""
    truth: Mapping[str, frozenset[str]] | None
    """Planted documents by behaviour; None where nobody knows them."""
    judge: Choice
    identities: Mapping[str, Any]
    """By content: `models`, `data`, `files`; the same in fingerprints, manifest and registration."""

    @property
    def behaviours(self) -> tuple[Behaviour, ...]:
        """The study's behaviours."""
        return self.study.behaviours

    @property
    def seed(self) -> int:
        """The study's seed."""
        return self.study.seed

    def split(self, name: Split) -> tuple[Prompt, ...]:
        """The prompts of one split, in the study's order."""
        return tuple(prompt for prompt in self.prompts if prompt.split == name)

    @cached_property
    def pool(self) -> Pool:
        """The documents that can be ranked."""
        return Pool(self.root / "artifacts" / "world" / "pool.parquet")

    def part(self, name: str) -> Any:
        """What a phase's tables depend on, as JSON (see `world.parts`)."""
        from datablame.world.parts import part_of

        return part_of(self, name)
