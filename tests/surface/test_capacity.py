"""How many rows a graphics card holds at once, from its free memory and what one row takes."""

from typing import TYPE_CHECKING

import pytest
import torch

from datablame.surface.sampler.decoder import Prompts
from datablame.surface.sampler.sampler import room, rows_that_fit

if TYPE_CHECKING:
    from datablame.models.pair import Pair


def test_a_row_takes_its_columns_and_logits(tiny_pair: "Pair") -> None:
    with torch.inference_mode():
        [(chunk, _, _)] = Prompts(tiny_pair.after, [(1, 2, 3), (4, 5, 6)], 8, 100).chunks_of([0, 1])
    keys_and_values = 2 * 2 * 2 * 8 * 4
    assert chunk.row_bytes(12) == 12 * keys_and_values + 3 * 304 * 4


@pytest.mark.parametrize(
    ("free", "rows"), [(10**9, 500), (100 * 1000, 64), (99 * 1000, 64), (79 * 1000, 32), (1000, 1), (0, 1)]
)
def test_rows_are_what_fits_as_a_power_of_two(free: int, rows: int) -> None:
    assert rows_that_fit(1000, free, most=500) == rows


def test_the_rows_of_a_cpu_are_the_studys_alone(tiny_pair: "Pair") -> None:
    assert room([Prompts(tiny_pair.after, [(1, 2, 3)], 8, 100)], 0, 10**12, most=500) == 500
