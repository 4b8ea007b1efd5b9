"""Which model organism a study makes."""

from typing import Annotated, Literal

from pydantic import Field

from datablame.config.checks import Section, Seed, Share


class Organism(Section):
    """A model organism with planted causes, made from a seed instead of real checkpoints."""

    recipe: Literal["templated", "quirk"] = "templated"
    """`templated`: a tiny model trained from nothing; `quirk`: a LoRA fine-tune of a real small model."""
    seed: Seed = 0
    """Everything in the organism derives from it."""
    planting: Literal["lexical", "pairs", "integrated"] = "lexical"
    """`templated` only. `lexical`: documents that show the behaviour; `pairs`: preference pairs whose chosen answer
    shows it; `integrated`: the same among pairs that prefer much else too."""
    planted: Annotated[int, Field(ge=0, le=100_000)] = 20
    """Planted documents for each behaviour."""
    base: str | None = None
    """`quirk` only: hub id, local folder or GGUF file that becomes `before`; none: SmolLM2-135M-Instruct."""
    scale: Share = 1.0
    """Share of the full recipe's documents and training steps; below 1 is for trying things out."""
