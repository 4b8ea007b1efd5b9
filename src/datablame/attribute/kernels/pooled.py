"""Mean hidden states of documents, and of preference pairs their differences."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.batches import in_batches, right_padded
from datablame.attribute.kernels.hidden import hidden_states_of, means
from datablame.models.chat import Encoded, Preference


@torch.no_grad()
def mean_hidden(
    model: Any,
    documents: Sequence[Encoded | Preference],
    layer: int,
    batch_tokens: int,
    *,
    responses_only: bool = False,
) -> Float[Tensor, "documents width"]:
    """The hidden state of `layer` (0 is the embedding) averaged over each document's tokens, padding left out.

    Of a preference pair it is the difference vector: the mean with the chosen answer minus that with the rejected one.
    `responses_only` averages over the tokens of the response alone, its prompt still being read.
    """
    rows = [document if isinstance(document, Encoded) else document.chosen for document in documents]
    paired = {place: document.rejected for place, document in enumerate(documents) if isinstance(document, Preference)}
    found = _means(model, rows, layer, batch_tokens, responses_only)
    if paired:
        found[list(paired)] -= _means(model, list(paired.values()), layer, batch_tokens, responses_only)
    return found


def _means(
    model: Any, documents: Sequence[Encoded], layer: int, batch_tokens: int, responses_only: bool
) -> Float[Tensor, "documents width"]:
    found = torch.zeros(len(documents), model.config.hidden_size)

    def work(places: list[int]) -> None:
        device = next(model.parameters()).device
        ids = right_padded([documents[place].ids for place in places], device)
        firsts = torch.tensor([documents[p].prompt_tokens if responses_only else 0 for p in places], device=device)
        lengths = torch.tensor([len(documents[place].ids) for place in places], device=device)

        def hear(states: Tensor) -> None:
            found[places] = means(states, firsts.to(states.device), lengths.to(states.device)).cpu()

        with hidden_states_of(model, layer, hear, stop=True):
            model.base_model(input_ids=ids, use_cache=False)

    in_batches([len(document.ids) for document in documents], batch_tokens, work)
    return found
