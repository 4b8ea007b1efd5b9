import functools
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.surface.test_sampler import drawn, requests

from datablame.errors import PhaseError
from datablame.surface.sampler.tokens import Settings

if TYPE_CHECKING:
    from datablame.models.pair import Pair


class Small(torch.nn.Module):
    """A model on a device with room for `rows` rows: the error is torch's own, raised where a real one would be."""

    def __init__(self, model: Any, rows: int) -> None:
        super().__init__()
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self._rows, self.refused = rows, 0
        # The sampler reads the signature, which is that of the real model.
        self.forward = functools.wraps(model.forward)(functools.partial(self._forward, model))

    def _forward(self, model: Any, **options: Any) -> Any:
        if options["input_ids"].shape[0] > self._rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.53 GiB.")
        return model(**options)


@pytest.mark.parametrize(("rows", "halves"), [(17, [18, 9]), (5, [18, 9, 4]), (1, [18, 9, 4, 2, 1])])
def test_samples_are_the_same_after_memory_ran_out(
    tiny_pair: "Pair", rows: int, halves: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = requests()
    after = Small(tiny_pair.after, rows)
    with caplog.at_level(logging.WARNING):
        assert drawn(tiny_pair, wanted, after=after) == drawn(tiny_pair, wanted)
    assert after.refused == len(halves)
    assert [record.message for record in caplog.records] == [
        f"memory ran out; outputs are now sampled {half} at a time" for half in halves
    ]


def test_sums_of_log_probabilities_are_the_same_after_memory_ran_out(tiny_pair: "Pair") -> None:
    wanted = requests()
    options: dict[str, Any] = {"alphas": (0.0, 1.0), "log_probabilities": True}
    whole = drawn(tiny_pair, wanted, **options)
    small = drawn(tiny_pair, wanted, before=Small(tiny_pair.before, 4), **options)
    for one, other in zip(whole, small, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_q == pytest.approx(other.log_q, abs=1e-4)
        assert (one.log_p_after, one.log_p_before) == pytest.approx((other.log_p_after, other.log_p_before), abs=1e-4)


def test_a_row_that_does_not_fit_alone_stops_the_phase(tiny_pair: "Pair") -> None:
    with pytest.raises(PhaseError, match=r"one output after a prompt of 9 tokens does not fit in memory; lower surf"):
        drawn(tiny_pair, requests(lengths=(9,)), Settings(max_new_tokens=3), after=Small(tiny_pair.after, 0))


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_pair: "Pair") -> None:
    class Broken(Small):
        def _forward(self, model: Any, **options: Any) -> Any:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        drawn(tiny_pair, requests(), after=Broken(tiny_pair.after, 9))
