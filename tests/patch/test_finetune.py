import copy
import logging
from functools import partial
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from datablame.errors import PhaseError
from datablame.models.blocks import trunk_below
from datablame.models.chat import Encoded, Preference
from datablame.models.likelihood import preference_losses, referred
from datablame.models.lora import Start, adapted, factors_of, targets_of
from datablame.models.training import Recipe, data_order, minimise, response_losses
from datablame.patch.finetune import Trained, train_adapters

# In float64: the first steps of Adam, near to signs, make much of what float32 rounds.
MODEL = tiny_model(seed=5).double().requires_grad_(False)
RECIPE = Recipe(steps=6, batch=4, learning_rate=1e-2, warmup_steps=1, clip=0.3)
START = Start(rank=4, layers=None, key=3)


def documents(arm: int) -> list[Encoded]:
    """Ten documents of different lengths, of which every arm has two of its own."""
    ragged = [Encoded([1, 2, *range(5, 9 + 2 * n), 1], 2 + n % 3) for n in range(10)]
    ragged[arm] = Encoded([1, 70 + arm, 71, 72, 1], 2)
    ragged[9 - arm] = Encoded([1, *range(30, 60 + arm)], 5)
    return ragged


ORDER = data_order([len(each.ids) for each in documents(0)], RECIPE, key=1)
ARMS = [documents(arm) for arm in range(3)]


def alone(model: Any, own: list[Any], start: Start = START, trunk: Any = None) -> Trained:
    """The oracle: peft's own modules, one adapter, torch's own clipping."""
    with adapted(model, *start) as adapter:
        steps = minimise(model, partial(response_losses, model, trunk=trunk), own, ORDER, RECIPE)
        kept = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in factors_of(adapter).items()}
        return Trained(kept, [loss for (loss,) in steps])


def assert_same(found: Trained, wanted: Trained, rel: float = 1e-4) -> None:
    assert found.losses == pytest.approx(wanted.losses, rel=rel)
    assert list(found.factors) == list(wanted.factors)
    for name, own in wanted.factors.items():
        for one, other in zip(found.factors[name], own, strict=True):
            assert float((one - other).norm()) <= rel * float(other.norm())


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_each_adapter_learns_what_it_learns_alone(micro_batch: int | None) -> None:
    recipe = RECIPE._replace(micro_batch=micro_batch)
    together = train_adapters(MODEL, ARMS, ORDER, recipe, START, beta=1.0)
    wanted = [alone(MODEL, own) for own in ARMS]
    assert len({each.losses[-1] for each in wanted}) == 3
    for found, other in zip(together, wanted, strict=True):
        assert_same(found, other)


def test_the_gradient_is_clipped_for_each_adapter_alone() -> None:
    """One arm's documents have much larger gradients; whatever they are clipped by, the others don't feel it."""
    loose, tight = RECIPE._replace(clip=1e9), RECIPE._replace(clip=1e-3)
    for recipe in (loose, tight):
        one = train_adapters(MODEL, ARMS[:1], ORDER, recipe, START, beta=1.0)[0]
        beside = train_adapters(MODEL, ARMS, ORDER, recipe, START, beta=1.0)[0]
        assert_same(beside, one)
    assert alone(MODEL, ARMS[0]).losses != pytest.approx(one.losses, rel=1e-5)


def test_where_an_arm_stands_and_who_is_beside_it_changes_nothing() -> None:
    forward = train_adapters(MODEL, ARMS, ORDER, RECIPE, START, beta=1.0)
    backward = train_adapters(MODEL, ARMS[::-1], ORDER, RECIPE, START, beta=1.0)
    for one, other in zip(forward, backward[::-1], strict=True):
        assert_same(one, other, rel=1e-5)


def test_above_a_trunk_it_is_the_same() -> None:
    start = START._replace(layers=(1,))
    every = [document for own in ARMS for document in own]
    trunk = trunk_below(MODEL, 1, every)
    assert trunk is not None
    together = train_adapters(MODEL, ARMS, ORDER, RECIPE, start, beta=1.0, trunk=trunk)
    for found, own in zip(together, ARMS, strict=True):
        assert_same(found, alone(MODEL, own, start))


def test_preference_pairs_learn_what_they_learn_alone() -> None:
    def pairs(arm: int) -> list[Preference]:
        found = [Preference(one, Encoded([*one.ids[:-1], 80], one.prompt_tokens)) for one in documents(arm)]
        return referred(MODEL, found, 4)

    arms = [pairs(arm) for arm in range(2)]
    together = train_adapters(MODEL, arms, ORDER, RECIPE, START, beta=2.0)
    for found, own in zip(together, arms, strict=True):
        with adapted(MODEL, *START):
            steps = minimise(MODEL, lambda part: preference_losses(MODEL, part, 2.0).mean(), own, ORDER, RECIPE)
        assert found.losses == pytest.approx([loss for (loss,) in steps], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_16_bit_weights_adapters_are_float32_and_learn_what_they_learn_alone(dtype: torch.dtype) -> None:
    base = tiny_model(seed=5).to(dtype).requires_grad_(False)
    together = train_adapters(base, ARMS[:2], ORDER, RECIPE, START, beta=1.0)
    for found, own in zip(together, ARMS[:2], strict=True):
        assert {factor.dtype for two in found.factors.values() for factor in two} == {torch.float32}
        assert found.losses == pytest.approx(alone(base, own).losses, rel=1e-2)


def test_the_model_is_as_it_was_also_after_an_error() -> None:
    model = copy.deepcopy(MODEL)
    names, weights = [n for n, _ in model.named_modules()], copy.deepcopy(model.state_dict())
    train_adapters(model, ARMS, ORDER, RECIPE, START, beta=1.0)
    with pytest.raises(IndexError):
        train_adapters(model, ARMS, [*ORDER, [99]], RECIPE, START, beta=1.0)
    assert [n for n, _ in model.named_modules()] == names
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Cramped:
    """Memory for so many rows of the embeddings: beyond, torch's own error."""

    def __init__(self, model: Any, rows: int) -> None:
        self.rows, self.seen = rows, list[int]()
        # Which layers a pass calls is looked at once.
        targets_of(model, None)
        self.handle = model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[0] > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(inputs[0].shape[0])


@pytest.mark.parametrize(
    ("rows", "taken", "said"),
    [
        (6, {6}, ["memory ran out; training now takes 6 documents at once, with the same gradient"]),
        (2, {2, 1}, ["memory does not hold 3 adapters at once; they are trained one after another"]),
    ],
)
def test_where_memory_is_short_less_is_taken_at_once_and_the_result_is_the_same(
    rows: int, taken: set[int], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = copy.deepcopy(MODEL)
    cramped = Cramped(model, rows)
    with caplog.at_level(logging.WARNING):
        found = train_adapters(model, ARMS, ORDER, RECIPE, START, beta=1.0)
    cramped.handle.remove()
    assert set(cramped.seen) <= taken
    assert [text for text in said if text not in caplog.messages] == []
    for one, own in zip(found, ARMS, strict=True):
        assert_same(one, alone(MODEL, own))


def test_a_document_that_does_not_fit_alone_stops_the_phase() -> None:
    model = copy.deepcopy(MODEL)
    cramped = Cramped(model, 0)
    with pytest.raises(PhaseError, match=r"does not fit in memory; lower attribute\.max_tokens"):
        train_adapters(model, ARMS, ORDER, RECIPE, START, beta=1.0)
    cramped.handle.remove()
