"""How documents are held responsible: the methods of a study and what they work with."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from datablame.config.checks import Count, Section, Share

DEFAULT_METHODS = (
    *("gradient", "gradient-dot", "activation", "llm-judge"),
    *("bm25", "bm25-response", "random", "loss", "gradient-norm"),
)
"""The specification's, what the leaderboard has for no more than their cost, and controls (docs/decisions/040)."""


class Prefilter(Section):
    """How the candidates that every method scores are chosen from the pool."""

    method: Literal["auto", "bm25", "none"] = "auto"
    """`bm25`: the union of the top documents of a behaviour's queries; `none`: numerical methods score the pool;
    `auto`: `none` on a graphics card, `bm25` on a CPU."""
    candidates: Count = 100
    """Documents that each query contributes."""

    def on(self, device: str) -> "Prefilter":
        """With `auto` decided for models on this device (`cpu`, `cuda`, `cuda:1`)."""
        decided = "bm25" if device == "cpu" else "none"
        return self.model_copy(update={"method": decided}) if self.method == "auto" else self


class Warmup(Section):
    """The LoRA training from before of the method `less`; the shares are those of Xia et al., arXiv 2402.04333."""

    share: Share = 0.05
    """Share of the pool's documents that it trains on, at least 16 of them."""
    epochs: Annotated[int, Field(gt=0, le=100)] = 4
    """Epochs; gradients are taken at the end of each."""
    least_steps: Count = 100
    """On a small pool every epoch goes through its documents again until all epochs together have so many steps."""
    rank: Annotated[int, Field(gt=0, le=4096)] = 8
    """Rank of the LoRA adapters, which are in all decoder blocks."""
    learning_rate: Share = 2e-4
    """Peak of the cosine schedule."""


class Attribute(Section):
    """Phase 3: which documents each method holds responsible."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    """Methods to run; `datablame methods` lists them."""
    top_k: Count = 20
    """Documents (duplicate clusters) that a method flags for each behaviour."""
    queries: Count = 5
    """Harmful outputs traced for each behaviour."""
    layers: tuple[NonNegativeInt, ...] | None = None
    """Decoder blocks, from 0, whose gradients are compared; none: 8 to 12 of 16, the same fractions otherwise."""
    activation_layer: NonNegativeInt | None = None
    """Index into the hidden states (0 is the embedding); none: 10 of 16, the same fraction otherwise."""
    checkpoint: Literal["after", "before"] = "after"
    """The weights at which gradients and activations are taken."""
    beta: Annotated[float, Field(gt=0, le=1000)] = 5.0
    """Of the method `gradient-dpo`: the beta of the length-normalised DPO that led from before to after."""
    encoder: str | None = None
    """Of the method `embedding`: a folder or hub id of sentence-transformers; none: all-MiniLM-L6-v2."""
    scores: Mapping[str, str] = {}
    """Scores of your own, each a method: name and path of a JSONL of `doc_id`, `score` and, if wanted, `behaviour`."""
    discover: bool | None = None
    """Group outputs by the documents that drive them, without labels; none: where gradients of the whole pool are
    compared, whose pass over documents it needs."""
    max_tokens: Count = 2048
    """Documents are cut here; one whose response is cut away is excluded and counted."""
    batch_tokens: Count = 4096
    """Token budget of a batch of documents."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights for gradients and activations; none: the checkpoint's in this study. Sums stay in float32."""
    projection: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Approximate: each layer's gradients are projected at random to a square of this size; none: they are exact."""
    index: str | None = None
    """With `projection`: a folder that keeps projected gradients; other queries then need no pass over documents."""
    warmup: Warmup = Warmup()
    """Of the method `less`."""
    duplicate_threshold: Share = 0.8
    """Jaccard similarity of word 5-grams, whole and answer, from which documents are one cluster; 1: equal ones."""

    @model_validator(mode="before")
    @classmethod
    def _with_scores(cls, value: Any) -> Any:
        """Every name of `scores` is one of `methods`."""
        scores = value.get("scores") if isinstance(value, Mapping) else None
        methods = value.get("methods", DEFAULT_METHODS) if isinstance(value, Mapping) else None
        if not isinstance(scores, Mapping) or not isinstance(methods, list | tuple):
            return value
        return {**value, "methods": [*methods, *(name for name in scores if name not in methods)]}
