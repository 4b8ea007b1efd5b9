import pytest
import torch
from tests.conftest import tiny_model

from datablame.attribute.kernels.hooks import mean_hidden, pooled_hidden
from datablame.models.chat import Encoded, Preference
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


@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
def test_one_pass_pools_several_layers_as_one_document_at_a_time_does(batch_tokens: int) -> None:
    model = tiny_model(3, layers=3)
    noise = torch.Generator().manual_seed(0)
    drawn = [torch.randint(2, 290, (n,), generator=noise).tolist() for n in (5, 17, 4, 9, 9)]
    single = [Encoded(ids, prompt) for ids, prompt in zip(drawn, (1, 16, 3, 2, 8), strict=True)]
    pool: list[Encoded | Preference] = [*single, Preference(single[0], single[1])]

    def naive(row: Encoded) -> torch.Tensor:
        with torch.no_grad():
            every = model(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        of_layers = [(every[layer][0], row.prompt_tokens) for layer in (0, 2, 3)]
        return torch.stack([torch.stack([s[-1], s.mean(0), s[start:].mean(0)]) for s, start in of_layers])

    expected = [*map(naive, single), naive(single[0]) - naive(single[1])]
    found = pooled_hidden(model, pool, [0, 2, 3], ["last", "mean", "response"], batch_tokens)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    turned = pooled_hidden(model, pool[::-1], [0, 2, 3], ["last", "mean", "response"], 40)
    torch.testing.assert_close(turned.flip(0), found, rtol=1e-4, atol=1e-5)


def test_batches_cover_every_document_once_within_the_budget() -> None:
    lengths = [5, 90, 3, 3, 8, 40, 1]
    batches = length_batches(lengths, 24)
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[p] for p in batch) <= 24 for batch in batches)
    assert batches == [[6, 2, 3, 0], [4], [5], [1]]
