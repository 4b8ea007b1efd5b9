"""How a token is chosen from amplified logits: what is cut away, then the inverse CDF at a given uniform."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Settings", "choose"]


@dataclass(frozen=True)
class Settings:
    """How a token is chosen from amplified logits, in this order: plausibility, temperature, top-k, top-p, min-p."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    plausibility: float = 0.0

    @property
    def untruncated(self) -> bool:
        """Whether samples come from q_alpha itself, so that importance weights from log q_k are exact."""
        return self.temperature == 1 and self.top_p == 1 and not (self.top_k or self.min_p or self.plausibility)


def choose(
    mixed: Float[Tensor, "rows vocabulary"],
    a: Float[Tensor, "rows vocabulary"],
    uniform: Float[Tensor, " rows"],
    settings: Settings,
) -> Int[Tensor, " rows"]:
    """The first token whose cumulative probability exceeds the row's uniform; the most probable at temperature 0."""
    if settings.plausibility:
        least = a.amax(-1, keepdim=True) + math.log(settings.plausibility)
        mixed = mixed.masked_fill(a < least, -math.inf)
    if settings.temperature == 0:
        return mixed.argmax(-1)
    scaled = mixed if settings.temperature == 1 else mixed / settings.temperature
    cumulative = _truncated(scaled, settings).softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)


def _truncated(scaled: Float[Tensor, "rows vocabulary"], settings: Settings) -> Float[Tensor, "rows vocabulary"]:
    """Top-k, top-p and min-p; every token as probable as the least one kept is kept too."""
    width = scaled.shape[-1]
    k = min(settings.top_k, width) if settings.top_k else width
    if k < width and settings.top_p == 1:
        scaled = scaled.masked_fill(scaled < scaled.topk(k).values[:, -1:], -math.inf)
    elif settings.top_p < 1:
        ordered = scaled.topk(k).values if k < width else scaled.sort(descending=True).values
        mass = ordered.softmax(-1, dtype=torch.float64)
        kept = (mass.cumsum(-1) - mass < settings.top_p).sum(-1, keepdim=True)
        scaled = scaled.masked_fill(scaled < ordered.gather(-1, (kept - 1).clamp(min=0)), -math.inf)
    if settings.min_p:
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + math.log(settings.min_p), -math.inf)
    return scaled
