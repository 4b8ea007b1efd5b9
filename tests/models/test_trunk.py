from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.conftest import tiny_model

from datablame.models.blocks import trunk_below
from datablame.models.chat import Encoded
from datablame.models.lora import adapted
from datablame.models.training import Recipe, data_order, minimise, response_losses

if TYPE_CHECKING:
    from datablame.models.pair import Pair

DOCUMENTS = [Encoded([1, *range(5, 5 + n)], 2) for n in (4, 9, 6, 13, 7)]
LAYERS = (2, 3)


@pytest.fixture
def model() -> Any:
    return tiny_model(seed=5, layers=4)


def test_training_above_the_trunk_is_training_of_the_whole_model(model: Any) -> None:
    recipe = Recipe(steps=6, batch=2, learning_rate=1e-2)
    order = data_order([len(d.ids) for d in DOCUMENTS], recipe, key=3)
    trunk = trunk_below(model, min(LAYERS), DOCUMENTS)
    assert trunk is not None
    losses, adapters = [], []
    for each in (None, trunk):
        with adapted(model, 2, LAYERS, key=7) as adapter:
            losses_of = partial(response_losses, model, trunk=each)
            losses.append([loss for (loss,) in minimise(model, losses_of, DOCUMENTS, order, recipe)])
            adapters.append([p.detach().clone() for p in adapter.owner.parameters() if p.requires_grad])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    for whole, cut in zip(*adapters, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(model: Any) -> None:
    trunk = trunk_below(model, 2, DOCUMENTS)
    assert trunk is not None
    alone = torch.cat([response_losses(model, [document], trunk=trunk) for document in DOCUMENTS])
    counts = torch.tensor([len(d.ids) - d.prompt_tokens for d in DOCUMENTS])
    [together] = response_losses(model, DOCUMENTS, trunk=trunk)
    torch.testing.assert_close(together, (alone * counts).sum() / counts.sum(), rtol=1e-5, atol=0)


def test_the_model_is_whole_again_afterwards(model: Any) -> None:
    ids = torch.tensor([DOCUMENTS[3].ids])
    before = model(input_ids=ids).logits
    trunk = trunk_below(model, 3, DOCUMENTS)
    assert trunk is not None
    with pytest.raises(KeyError), trunk.cut_off():
        trunk.padded([Encoded([9, 9], 1)])
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_model_that_scales_its_embeddings_is_not_cut(model: Any) -> None:
    """Some architectures multiply what comes in as `inputs_embeds`."""
    inner = model.model
    inner.register_forward_pre_hook(
        lambda _, args, kwargs: (
            (args, {**kwargs, "inputs_embeds": 2 * kwargs["inputs_embeds"]})
            if kwargs.get("inputs_embeds") is not None
            else None
        ),
        with_kwargs=True,
    )
    assert trunk_below(model, 2, DOCUMENTS) is None


def test_nothing_lies_below_the_first_block(tiny_pair: "Pair") -> None:
    assert trunk_below(tiny_pair.before, 0, DOCUMENTS) is None
