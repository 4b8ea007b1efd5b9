"""Direct preference optimisation (Rafailov et al. 2023) in Tulu 3's length-normalised form (Lambert et al. 2024)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from datablame.models.chat import Preference
from datablame.models.head import response_nll, response_places


def preference_loss(model: nn.Module, pairs: Sequence[Preference], beta: float) -> Float[Tensor, ""]:
    """The mean of `preference_losses`."""
    return preference_losses(model, pairs, beta).mean()


def preference_losses(
    model: nn.Module, pairs: Sequence[Preference], beta: float, n: int = 1
) -> Float[Tensor, " pairs"]:
    """-log sigmoid(beta (r - r_reference)) of each pair; Tulu 3 takes beta = 5.

    r = 1/|chosen| log p(chosen | prompt) - 1/|rejected| log p(rejected | prompt): each answer's log-probability (nats)
    is divided by its tokens, so that a long answer does not count for more. A pair's `reference` is r of the model that
    training started from. Untouched, a model has the loss log 2.
    """
    ratios = log_ratios(model, pairs, n)
    references = torch.tensor([pair.reference for pair in pairs]).to(ratios)
    return -F.logsigmoid(beta * (ratios - references))


@torch.no_grad()
def referred(model: nn.Module, pairs: Sequence[Preference], at_once: int) -> list[Preference]:
    """The pairs with `log_ratios` of the model that training is about to start from, `at_once` at a time."""
    starts = range(0, len(pairs), at_once)
    ratios = [ratio for start in starts for ratio in log_ratios(model, pairs[start : start + at_once]).tolist()]
    return [pair._replace(reference=ratio) for pair, ratio in zip(pairs, ratios, strict=True)]


def log_ratios(model: nn.Module, pairs: Sequence[Preference], n: int = 1) -> Float[Tensor, " pairs"]:
    """For each pair the mean log-probability (nats) of the chosen answer's tokens less that of the rejected one's.

    The output head is given only the hidden states that predict a token of an answer. The rows of each of `n`
    consecutive runs of pairs stay together.
    """
    run = len(pairs) // n
    runs = [pairs[start : start + run] for start in range(0, len(pairs), run)]
    answers = [answer for some in runs for answer in (*(p.chosen for p in some), *(p.rejected for p in some))]
    places = response_places(answers, next(model.parameters()).device)
    nll = response_nll(model, lambda: model(input_ids=places.ids, use_cache=False), places)
    tokens = torch.bincount(places.rows, minlength=len(answers))
    log_p = (-nll.new_zeros(len(answers)).index_add(0, places.rows, nll) / tokens).view(n, 2, run)
    return (log_p[:, 0] - log_p[:, 1]).reshape(-1)
