"""CUDA graphs of a decode step: one launch for all kernels of a model, on a stream of its own.

Off unless asked for. What is here runs on a CPU under test with `capture` replaced, all but `captured` itself and the
streams, which no card has run yet.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_WARM_UP = 3


class Step(NamedTuple):
    """A step for a fixed number of rows: `replay` fills `output` from what stands in the step's own tensors."""

    replay: Callable[[], Any]
    output: Tensor


def captured(step: Callable[[int], Tensor], rows: int) -> Step:
    """The kernels of `step(rows)` as a CUDA graph."""
    for _ in range(_WARM_UP):
        step(rows)
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step(rows)
    return Step(graph.replay, output)


class Graphs:
    """A step captured at the capacity and at its halves, of which the smallest that holds the rows is replayed.

    Rows beyond those asked for compute what nobody reads. The step reads and writes tensors that stay where they are.
    """

    def __init__(
        self,
        step: Callable[[int], Tensor],
        capacity: int,
        device: torch.device,
        capture: Callable[[Callable[[int], Tensor], int], Step] = captured,
    ) -> None:
        self._step, self._capacity, self._capture = step, capacity, capture
        self._steps: dict[int, Step] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, rows: int) -> Tensor:
        """The outputs of at least `rows` rows; on a card they are there after `join`."""
        size = self._capacity
        while size // 2 >= rows:
            size //= 2
        if size not in self._steps:
            self._steps[size] = self._capture(self._step, size)
        step = self._steps[size]
        if self._stream is None:
            step.replay()
        else:
            # What the step reads was written on the current stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            with torch.cuda.stream(self._stream):
                step.replay()
        return step.output

    def join(self) -> None:
        """Let the current stream wait for the last replay."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
