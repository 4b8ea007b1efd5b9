from typing import TYPE_CHECKING

import pytest
from tests.conftest import tiny_model

from datablame.models.blocks import activation_layer, decoder_blocks, middle_blocks

if TYPE_CHECKING:
    from datablame.models.pair import Pair


def test_decoder_blocks_are_found_in_order(tiny_pair: "Pair") -> None:
    assert decoder_blocks(tiny_pair.after) == list(tiny_pair.after.model.layers)


def test_a_model_without_blocks_is_refused() -> None:
    from torch import nn

    model = tiny_model(seed=0, layers=2)
    model.model.layers = nn.ModuleList()
    with pytest.raises(ValueError, match="Olmo2ForCausalLM has no list of 2 decoder blocks"):
        decoder_blocks(model)


@pytest.mark.parametrize(
    ("n", "blocks"), [(16, [8, 9, 10, 11, 12]), (4, [2, 3]), (1, [0]), (30, list(range(15, 23))), (2, [1])]
)
def test_the_middle_is_8_to_12_of_16_or_the_same_fractions(n: int, blocks: list[int]) -> None:
    assert middle_blocks(n) == blocks


@pytest.mark.parametrize(("n", "layer"), [(16, 10), (4, 2), (30, 19)])
def test_activations_are_taken_at_10_of_16_or_the_same_fraction(n: int, layer: int) -> None:
    assert activation_layer(n) == layer
