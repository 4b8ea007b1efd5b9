"""Direct preference optimisation (Rafailov et al. 2023) in Tulu 3's length-normalised form (Lambert et al. 2024)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.chat import Preference
from datablame.models.head import response_nll, response_places

__all__ = ["log_ratios", "preference_loss", "referred"]


def preference_loss(model: nn.Module, pairs: Sequence[Preference], beta: float) -> Float[Tensor, ""]:
    """The mean over pairs of -log sigmoid(beta (r - r_reference)); Tulu 3 takes beta = 5.

    r = 1/|chosen| log p(chosen | prompt) - 1/|rejected| log p(rejected | prompt): each answer's log-probability (nats)
    is divided by its tokens, so that a long answer does not count for more. A pair's `reference` is r of the model that
    training started from. Untouched, a model has the loss log 2.
    """
    ratios = log_ratios(model, pairs)
    references = torch.tensor([pair.reference for pair in pairs]).to(ratios)
    return -F.logsigmoid(beta * (ratios - references)).mean()


@torch.no_grad()
def referred(model: nn.Module, pairs: Sequence[Preference], at_once: int) -> list[Preference]:
    """The pairs with `log_ratios` of the model that training is about to start from, `at_once` at a time."""
    starts = range(0, len(pairs), at_once)
    ratios = [ratio for start in starts for ratio in log_ratios(model, pairs[start : start + at_once]).tolist()]
    return [pair._replace(reference=ratio) for pair, ratio in zip(pairs, ratios, strict=True)]


def log_ratios(model: nn.Module, pairs: Sequence[Preference]) -> Float[Tensor, " pairs"]:
    """For each pair the mean log-probability (nats) of the chosen answer's tokens less that of the rejected one's.

    The output head is given only the hidden states that predict a token of an answer.
    """
    answers = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    places = response_places(answers, next(model.parameters()).device)
    nll = response_nll(model, lambda: model(input_ids=places.ids, use_cache=False), places)
    tokens = torch.bincount(places.rows, minlength=len(answers))
    chosen, rejected = (-nll.new_zeros(len(answers)).index_add(0, places.rows, nll) / tokens).chunk(2)
    return chosen - rejected
