"""Steps of fixed shapes, as a card would replay them, draw what other steps draw. No graph is captured on a CPU."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from tests.surface.test_refilling import ragged
from tests.surface.test_sampler import drawn

from datablame.surface.sampler.capacity import free_bytes_of, row_bytes, rows_that_fit
from datablame.surface.sampler.graphs import Graphs, Step
from datablame.surface.sampler.prefill import Prompts

if TYPE_CHECKING:
    from datablame.models.pair import Pair

Forward = Callable[[int], torch.Tensor]


class Replayed:
    """A capture that runs the step again into the same output, and remembers its sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, step: Forward, rows: int) -> Step:
        self.sizes.append(rows)
        output = step(rows).clone()
        return Step(lambda: output.copy_(step(rows)), output)


@pytest.mark.parametrize("batch_rows", [3, 8, 100])
def test_steps_of_fixed_shapes_draw_the_same(tiny_pair: "Pair", batch_rows: int) -> None:
    capture = Replayed()
    graphs = functools.partial(Graphs, capture=capture)
    wanted = ragged(16)
    assert drawn(tiny_pair, wanted, batch_rows=batch_rows, graphs=graphs) == drawn(tiny_pair, wanted)
    assert set(capture.sizes) <= {3, 1, 8, 4, 2, 12, 6}


def test_a_step_is_captured_once_for_each_size() -> None:
    capture = Replayed()
    graphs = Graphs(lambda rows: torch.arange(rows), 12, torch.device("cpu"), capture)
    assert [len(graphs(rows)) for rows in (12, 11, 7, 6, 6, 3, 2, 1, 12)] == [12, 12, 12, 6, 6, 3, 3, 1, 12]
    assert capture.sizes == [12, 6, 3, 1]


def test_a_row_takes_its_columns_and_logits(tiny_pair: "Pair") -> None:
    with torch.inference_mode():
        [(chunk, _, _)] = Prompts(tiny_pair.after, [(1, 2, 3), (4, 5, 6)], 8, 100).groups([0, 1])
    keys_and_values = 2 * 2 * 2 * 8 * 4
    assert chunk.token_bytes == keys_and_values
    assert row_bytes(chunk, 12) == 12 * keys_and_values + 3 * 304 * 4


@pytest.mark.parametrize(
    ("free", "rows"), [(10**9, 500), (100 * 1000, 64), (99 * 1000, 64), (79 * 1000, 32), (1000, 1), (0, 1)]
)
def test_rows_are_what_fits_as_a_power_of_two(free: int, rows: int) -> None:
    assert rows_that_fit(1000, free, most=500) == rows


def test_the_rows_of_a_cpu_are_the_studys_alone() -> None:
    assert free_bytes_of(torch.device("cpu")) is None
