import copy
import logging
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from datablame.errors import PhaseError
from datablame.models.chat import Encoded
from datablame.models.lora import adapted
from datablame.models.training import Recipe, response_losses, train

RAGGED = [Encoded([1, 2, *range(5, 7 + 3 * n), 1], 2 + n % 3) for n in range(1, 8)]
RECIPE = Recipe(steps=10, batch=7, learning_rate=1e-2, warmup_steps=2)
ORDER = [list(range(7))] * RECIPE.steps


@pytest.fixture
def model() -> Any:
    return tiny_model(seed=5)


class Small(torch.nn.Module):
    """A model on a device with room for `rows` rows: the error is torch's own."""

    def __init__(self, model: Any, rows: int) -> None:
        super().__init__()
        self.model, self.rows, self.seen = model, rows, list[int]()

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        if input_ids.shape[0] > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(input_ids.shape[0])
        return self.model(input_ids=input_ids, **options)


def gradients(model: Any, micro_batch: int | None) -> list[torch.Tensor]:
    """The gradient of one step, as the optimiser sees it."""
    seen: list[torch.Tensor] = []
    original = torch.nn.utils.clip_grad_norm_

    def look(parameters: Any, norm: float) -> Any:
        seen.extend(parameter.grad.clone() for parameter in parameters if parameter.grad is not None)
        return original(parameters, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", look)
        train(copy.deepcopy(model), RAGGED, ORDER[:1], RECIPE._replace(micro_batch=micro_batch))
    return seen


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
def test_portions_have_the_gradient_of_the_whole_batch(model: Any, micro_batch: int) -> None:
    whole, parts = gradients(model, None), gradients(model, micro_batch)
    assert len(whole) == len(parts) == len(list(model.parameters()))
    for one, other in zip(whole, parts, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-5


def test_the_loss_of_portions_is_the_loss_of_the_batch(model: Any) -> None:
    whole = float(response_losses(model, RAGGED).detach())
    [loss] = train(model, RAGGED, ORDER[:1], RECIPE._replace(micro_batch=2))
    assert loss == pytest.approx(whole, rel=1e-6)


def test_a_portion_as_large_as_the_batch_changes_no_bit(model: Any) -> None:
    twin = copy.deepcopy(model)
    assert train(model, RAGGED, ORDER, RECIPE) == train(twin, RAGGED, ORDER, RECIPE._replace(micro_batch=7))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_after_memory_ran_out_portions_are_halved_and_the_training_is_the_same(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    twin = copy.deepcopy(model)
    small = Small(model, rows=2)
    with caplog.at_level(logging.WARNING):
        losses = train(small, RAGGED, ORDER, RECIPE)
    assert losses == pytest.approx(train(twin, RAGGED, ORDER, RECIPE._replace(micro_batch=1)), rel=1e-4)
    assert set(small.seen) == {1}
    assert [record.message for record in caplog.records] == [
        "memory ran out; training now takes 3 documents at once, with the same gradient",
        "memory ran out; training now takes 1 documents at once, with the same gradient",
    ]


def test_a_document_that_does_not_fit_alone_stops_the_phase(model: Any) -> None:
    with pytest.raises(PhaseError, match=r"training on a document of 26 tokens does not fit .*attribute\.max_tokens"):
        train(Small(model, rows=0), RAGGED, ORDER, RECIPE)


def test_other_errors_are_not_taken_for_a_lack_of_memory(model: Any) -> None:
    with pytest.raises(IndexError):
        train(model, RAGGED, [[99]], RECIPE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_adapters_on_16_bit_weights_learn_what_they_learn_on_32(dtype: torch.dtype) -> None:
    curves = {}
    for kind in (torch.float32, dtype):
        base = tiny_model(seed=5).to(kind).requires_grad_(False)
        with adapted(base, 4, None, key=1):
            trained = [parameter for parameter in base.parameters() if parameter.requires_grad]
            assert {parameter.dtype for parameter in trained} == {torch.float32}
            curves[kind] = train(base, RAGGED, ORDER * 2, RECIPE)
    assert curves[dtype][-1] < 0.7 * curves[dtype][0]
    assert curves[dtype] == pytest.approx(curves[torch.float32], rel=0.05)


def test_gradients_too_small_for_float16_arrive(model: Any) -> None:
    """A loss near zero has gradients below the least number of float16; unscaled, most of them would be lost."""
    base = model.to(torch.float16).requires_grad_(False)
    example = [Encoded([1, 2, 3, 40, 1], 3)]
    with adapted(base, 4, None, key=1):
        train(base, example, [[0]] * 60, RECIPE._replace(steps=60, batch=1, learning_rate=3e-2))
        trained = [parameter for parameter in base.parameters() if parameter.requires_grad]

        def zeros(scale: float) -> float:
            for parameter in trained:
                parameter.grad = None
            (response_losses(base, example) * scale).backward()
            found = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
            return float((found == 0).float().mean())

        assert zeros(1.0) > 2 * zeros(2.0**14)


def test_a_scale_that_overflows_is_lowered_and_no_step_is_lost(model: Any) -> None:
    """Huge activations' gradients overflow at the first scale; the step is done again, so every document counts."""
    base = model.to(torch.float16).requires_grad_(False)
    base.get_output_embeddings().weight.data.mul_(200)
    with adapted(base, 4, None, key=1):
        losses = train(base, RAGGED, ORDER, RECIPE._replace(learning_rate=1e-3))
        trained = [parameter for parameter in base.parameters() if parameter.requires_grad]
        assert all(bool(parameter.isfinite().all()) for parameter in trained)
    assert all(loss > 0 for loss in losses)
    assert losses[-1] < losses[0]
