"""Mean hidden states of documents."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.batches import in_batches, right_padded
from datablame.models.chat import Encoded

__all__ = ["mean_hidden"]


@torch.no_grad()
def mean_hidden(
    model: Any, documents: Sequence[Encoded], layer: int, batch_tokens: int
) -> Float[Tensor, "documents width"]:
    """The hidden state of `layer` (0 is the embedding) averaged over each document's tokens, padding left out."""
    found = torch.zeros(len(documents), model.config.hidden_size)

    def work(places: list[int]) -> None:
        device = next(model.parameters()).device
        ids = right_padded([documents[place].ids for place in places], device)
        states = model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[layer]
        lengths = torch.tensor([len(documents[place].ids) for place in places], device=device)
        real = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).unsqueeze(2)
        found[places] = (states.float().where(real, 0).sum(1) / lengths[:, None]).cpu()

    in_batches([len(document.ids) for document in documents], batch_tokens, work)
    return found
