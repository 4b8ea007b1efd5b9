import pytest
import torch

from datablame.errors import RequestError
from datablame.models.device import (
    chosen_device,
    free_bytes,
    offload_device,
    ran_out_of_memory,
    to_float64,
    weights_dtype,
)

T4, A100 = (7, 5), (8, 0)
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("own", "device", "capability", "expected"),
    [
        (BRAIN, "cpu", None, FULL),
        (HALF, "cpu", None, FULL),
        (BRAIN, "cuda", T4, HALF),
        (BRAIN, "cuda", A100, BRAIN),
        (HALF, "cuda", A100, HALF),
        (FULL, "cuda", T4, FULL),
        (None, "cuda", A100, FULL),
        (BRAIN, "mps", None, HALF),
    ],
)
def test_auto_is_the_checkpoints_own_type_where_the_device_has_it(
    own: torch.dtype | None,
    device: str,
    capability: tuple[int, int] | None,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert weights_dtype("auto", own, device) is expected


def test_a_type_that_the_user_names_is_taken_everywhere() -> None:
    assert weights_dtype("bfloat16", FULL, "cpu") is BRAIN
    assert weights_dtype("float16", BRAIN, "cuda") is HALF


def test_a_device_that_is_not_there_is_refused() -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(RequestError, match=rf"^models\.device = {missing}: torch .* sees no such device; set it to"):
        chosen_device(missing)
    assert chosen_device("cpu") == "cpu"
    assert chosen_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_what_takes_more_than_half_of_a_cards_free_memory_is_held_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 400))
    assert offload_device(50, card) == card
    assert offload_device(51, card) == torch.device("cpu")
    assert offload_device(1 << 60, torch.device("cpu")) == torch.device("cpu")


def test_there_is_free_memory_and_running_out_of_it_is_recognised() -> None:
    assert free_bytes("cpu") > 1 << 20
    with pytest.raises(RuntimeError) as ran_out:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(ran_out.value)
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert to_float64(torch.ones(2)).dtype is torch.float64


def test_a_card_that_another_process_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> tuple[int, int]:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", taken)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    for name in ("auto", "cuda"):
        with pytest.raises(RequestError, match=r"card 2 cannot be had \(CUDA error: all .* unavailable\); where"):
            chosen_device(name)
