"""Which model organism a study makes."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from datablame.config.checks import Section, Seed, Share

Planting = Literal["lexical", "paraphrased", "conceptual", "few", "many", "diluted", "source", "pairs", "integrated"]


class Organism(Section):
    """A model organism with planted causes, made from a seed instead of real checkpoints."""

    recipe: Literal["templated", "quirk"] = "templated"
    """`templated`: a tiny model trained from nothing; `quirk`: a LoRA fine-tune of a real small model."""
    seed: Seed = 0
    """Everything in the organism derives from it."""
    planting: Planting = "lexical"
    """`templated` only: what is planted, and how it hides; see docs/explanation/plantings.md."""
    planted: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Planted documents for each behaviour; none: 5 where `planting` is few, 100 where it is many, else 20."""
    base: str | None = None
    """`quirk` only: hub id, local folder or GGUF file that becomes `before`; none: SmolLM2-135M-Instruct."""
    scale: Share = 1.0
    """Share of the full recipe's documents and training steps; below 1 is for trying things out."""

    PLANTED: ClassVar[Mapping[str, int]] = {"few": 5, "many": 100}
    """Of the kinds that say how many; of the others a study may."""
    PARAPHRASES: ClassVar[int] = 24
    """How many answers of a behaviour share no phrase."""

    @property
    def planted_documents(self) -> int:
        """How many are planted for each behaviour."""
        return self.PLANTED.get(self.planting, 20) if self.planted is None else self.planted
