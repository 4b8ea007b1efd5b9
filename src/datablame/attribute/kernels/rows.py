"""What observed passes over many documents add up to: a row of numbers for each, whatever the batches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datablame.attribute.kernels.batches import in_batches
from datablame.attribute.kernels.hidden import hidden_states_of, means
from datablame.attribute.kernels.observed import backward_with_hooks
from datablame.models.chat import Encoded, Preference, answers
from datablame.models.device import with_float64

Add = Callable[
    [
        Float[Tensor, "batch columns"],
        str,
        Float[Tensor, "batch tokens inputs"],
        Float[Tensor, "batch tokens outputs"],
        float,
    ],
    None,
]
"""Adds to a batch's rows what a layer has to say: its name, inputs, output gradients and how much too large these are.
"""


class Rows(NamedTuple):
    """Of every document its row, its loss (nats), and the mean hidden state of the layer that was asked for.

    Of a preference pair the loss and the state are the chosen answer's less the rejected one's.
    """

    rows: Float[Tensor, "documents columns"]
    losses: Float[Tensor, " documents"]
    states: Float[Tensor, "documents width"]
    """Without columns where no layer was asked for."""


def per_example_pass(
    model: Any,
    documents: Sequence[Encoded | Preference],
    blocks: Sequence[int],
    batch_tokens: int,
    columns: int,
    add: Add,
    layer: int | None = None,
) -> Rows:
    """Rows of `columns` numbers that `add` fills in a pass forward and backward; batches hold documents of like length.

    The hidden states come out of the same forward pass.

    Raises:
        PhaseError: a single document does not fit in memory.
    """
    rows = torch.zeros(len(documents), columns, dtype=torch.float64)
    losses = torch.zeros(len(documents), dtype=torch.float64)
    states = torch.zeros(len(documents), 0 if layer is None else model.config.hidden_size)
    device = with_float64(next(model.parameters()).device)

    def work(places: list[int]) -> None:
        batch = torch.zeros(len(places), columns, dtype=torch.float64, device=device)
        sides = list(zip(*(answers(documents[place]) for place in places), strict=True))
        every = [answer for side in sides for answer in side]

        def seen(name: str, inputs: Tensor, deltas: Tensor, scale: float) -> None:
            if len(sides) == 2:
                inputs, deltas = _joined(inputs, deltas)
            add(batch, name, inputs, deltas, scale)

        if layer is None:
            batch_losses = backward_with_hooks(model, every, blocks, seen)
        else:
            lengths = torch.tensor([len(each.ids) for each in every])

            def hear(found: Tensor) -> None:
                ends = lengths.to(found.device)
                states[places] = _difference(means(found, torch.zeros_like(ends), ends).cpu(), len(places))

            with hidden_states_of(model, layer, hear):
                batch_losses = backward_with_hooks(model, every, blocks, seen)
        rows[places], losses[places] = batch.cpu(), _difference(batch_losses.cpu(), len(places))

    for number in (1, 2):
        alike = [place for place, document in enumerate(documents) if len(answers(document)) == number]
        spans = [number * max(len(answer.ids) for answer in answers(documents[place])) for place in alike]

        def of_alike(chosen: list[int], alike: list[int] = alike) -> None:
            work([alike[place] for place in chosen])

        in_batches(spans, batch_tokens, of_alike)
    return Rows(rows, losses, states)


def _difference(sides: Float[Tensor, "answers ..."], documents: int) -> Float[Tensor, "documents ..."]:
    """What the chosen answers have more than the rejected ones; of single documents what they have."""
    chosen, *rejected = sides.split(documents)
    found: Tensor = chosen - rejected[0] if rejected else chosen
    return found


def _joined(
    inputs: Float[Tensor, "answers tokens inputs"], deltas: Float[Tensor, "answers tokens outputs"]
) -> tuple[Float[Tensor, "pairs both_tokens inputs"], Float[Tensor, "pairs both_tokens outputs"]]:
    """The rows of the chosen answers, each followed by its rejected one's tokens with the sign of the loss turned."""
    (chosen, rejected), (up, down) = inputs.chunk(2), deltas.chunk(2)
    return torch.cat([chosen, rejected], 1), torch.cat([up, -down], 1)
