import pytest
import torch
from tests.conftest import tiny_model

from datablame.attribute.kernels.hooks import mean_hidden
from datablame.models.chat import Encoded
from datablame.models.likelihood import length_batches


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
def test_hidden_states_are_averaged_over_real_tokens_only(layer: int, batch_tokens: int) -> None:
    model = tiny_model(3, layers=3)
    noise = torch.Generator().manual_seed(0)
    pool = [Encoded(torch.randint(2, 290, (n,), generator=noise).tolist(), 1) for n in (5, 17, 2, 9, 2)]
    with torch.no_grad():
        alone = [
            model(input_ids=torch.tensor([d.ids]), output_hidden_states=True).hidden_states[layer][0].mean(0)
            for d in pool
        ]
    torch.testing.assert_close(mean_hidden(model, pool, layer, batch_tokens), torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_batches_cover_every_document_once_within_the_budget() -> None:
    lengths = [5, 90, 3, 3, 8, 40, 1]
    batches = length_batches(lengths, 24)
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[p] for p in batch) <= 24 for batch in batches)
    assert batches == [[6, 2, 3, 0], [4], [5], [1]]
