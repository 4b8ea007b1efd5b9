import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from datablame.models.chat import Encoded
from datablame.models.training import Recipe, data_order, learning_rate_share, response_losses, train

RECIPE = Recipe(steps=12, batch=4, learning_rate=1e-2, warmup_steps=2)


def examples(count: int = 10) -> list[Encoded]:
    """Ragged examples whose response repeats the prompt's last token."""
    rows = []
    for number in range(count):
        prompt = [1, 2, *[5 + (number + i) % 40 for i in range(number % 5)], 50 + number % 7]
        rows.append(Encoded([*prompt, prompt[-1], prompt[-1], 1], len(prompt)))
    return rows


@pytest.fixture
def model() -> Any:
    return tiny_model(seed=5)


def by_hand(model: Any, batch: list[Encoded]) -> float:
    """The mean over all response tokens of -log p(token | before), one example at a time, from full logits."""
    nats: list[torch.Tensor] = []
    for example in batch:
        log_p = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
        nats += [-log_p[i - 1, example.ids[i]] for i in range(example.prompt_tokens, len(example.ids))]
    return float(torch.stack(nats).mean().detach())


def test_the_loss_is_the_mean_over_response_tokens_whatever_the_padding(model: Any) -> None:
    batch = examples()

    assert float(response_losses(model, batch).detach()) == pytest.approx(by_hand(model, batch), rel=1e-5)


def test_the_loss_leaves_no_hook_behind(model: Any) -> None:
    before = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    response_losses(model, examples()[:2])

    assert torch.equal(model(input_ids=torch.tensor([[1, 2, 3]])).logits, before)


def test_prompt_tokens_are_not_learned_and_the_end_is(model: Any) -> None:
    head = model.get_output_embeddings().weight
    response_losses(model, [Encoded([1, 2, 9, 1], 3)]).backward()
    probabilities = model(input_ids=torch.tensor([[1, 2, 9, 1]])).logits[0, 2].softmax(-1)

    pulled = [token for token in range(head.shape[0]) if (head.grad[token].abs() > probabilities[token] * 10).any()]
    assert 1 in pulled
    assert 9 not in pulled


def test_training_lowers_the_loss_and_repeats_bit_for_bit(model: Any) -> None:
    batch, twin = examples(), copy.deepcopy(model)
    order = data_order([len(example.ids) for example in batch], RECIPE, key=3)
    generator = torch.random.get_rng_state()

    losses = train(model, batch, order, RECIPE)

    assert losses == train(twin, batch, order, RECIPE)
    assert losses[-1] < losses[0] / 2
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_only_parameters_that_require_gradients_are_trained(model: Any) -> None:
    model.requires_grad_(False)
    head = model.get_output_embeddings().weight.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    train(model, examples(), [[0, 1]], RECIPE)

    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed == ["lm_head.weight"]
    assert head.grad is None


def test_every_step_is_reported(model: Any) -> None:
    heard: list[tuple[int, float]] = []

    def hear(step: int, optimizer: torch.optim.Optimizer) -> None:
        heard.append((step, max(float(state["step"]) for state in optimizer.state.values())))

    train(model, examples(), [[0, 1], [2, 3]], RECIPE, hear)

    assert heard == [(0, 1.0), (1, 2.0)]


def test_an_epoch_sees_every_position_once_before_any_twice() -> None:
    order = data_order([7] * 100, Recipe(steps=14, batch=16, learning_rate=1.0), key=11)
    first, second = order[:7], order[7:]

    assert sorted(position for batch in first for position in batch) == list(range(100))
    assert sorted(position for batch in second for position in batch) == list(range(100))
    assert first != second


def test_batches_hold_documents_of_similar_length() -> None:
    lengths = [number % 64 for number in range(1024)]
    order = data_order(lengths, Recipe(steps=64, batch=16, learning_rate=1.0), key=1)

    spreads = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in order]
    assert sum(spreads) / len(spreads) < 10


def test_the_order_depends_on_the_key_and_on_nothing_else() -> None:
    lengths = list(range(50))
    recipe = Recipe(steps=5, batch=8, learning_rate=1.0)

    assert data_order(lengths, recipe, key=1) == data_order(lengths, recipe, key=1)
    assert data_order(lengths, recipe, key=1) != data_order(lengths, recipe, key=2)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        data_order([], RECIPE, key=1)


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth() -> None:
    recipe = Recipe(steps=1000, batch=1, learning_rate=1.0, warmup_steps=20)
    shares = [learning_rate_share(step, recipe) for step in range(1000)]

    assert shares[0] == pytest.approx(0.05)
    assert max(shares) == pytest.approx(1.0, abs=0.01)
    assert shares[-1] == pytest.approx(0.05, abs=0.001)
    assert all(later <= earlier for earlier, later in pairwise(shares[20:]))


def test_a_lora_model_is_trained_through_its_own_head(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    batch = examples()
    expected = by_hand(model, batch)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))

    assert float(response_losses(adapted, batch).detach()) == pytest.approx(expected, rel=1e-5)
    order = data_order([len(example.ids) for example in batch], RECIPE, key=3)
    losses = train(adapted, batch, order, RECIPE)
    assert losses[-1] < losses[0]
