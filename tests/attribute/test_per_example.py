import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model
from tests.oracles.gradients import naive_gradient, naive_similarities

from datablame.attribute.kernels import hooks, per_example
from datablame.attribute.kernels.per_example import contributions, directions, similarities
from datablame.errors import PhaseError
from datablame.models.chat import Encoded
from datablame.models.products import products

BLOCKS = [1, 2]


def olmo2() -> Any:
    return tiny_model(3, layers=4)


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=304,
            hidden_size=24,
            intermediate_size=56,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=304,
            hidden_size=24,
            intermediate_size=56,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
    )


def built(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make().eval().requires_grad_(False)


def documents(n: int, shortest: int = 2, longest: int = 30, seed: int = 0) -> list[Encoded]:
    noise = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=noise))
        prompt = int(torch.randint(1, length, (1,), generator=noise))
        found.append(Encoded(torch.randint(2, 290, (length,), generator=noise).tolist(), prompt))
    return found


@pytest.mark.parametrize(
    ("make", "batch_tokens"),
    [
        *((olmo2, 1), (olmo2, 45), (olmo2, 10_000), (llama, 45), (qwen2, 45)),
        *(pytest.param(make, tokens, marks=pytest.mark.slow) for make in (llama, qwen2) for tokens in (1, 10_000)),
    ],
)
def test_similarities_are_those_of_autograd_whatever_the_batch(make: Callable[[], Any], batch_tokens: int) -> None:
    model = built(make)
    pool = documents(12)
    queries = [documents(3, seed=1), documents(1, seed=2)]
    naive = naive_similarities(model, pool, queries, BLOCKS)
    found = similarities(model, pool, directions(model, queries, BLOCKS), BLOCKS, batch_tokens)
    torch.testing.assert_close(found.norms, naive.norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.losses, naive.losses.double(), rtol=1e-5, atol=0)
    cosines = (found.dots / found.norms[:, None], naive.dots / naive.norms[:, None])
    torch.testing.assert_close(*cosines, rtol=1e-4, atol=1e-6)


def test_a_document_does_not_depend_on_its_place() -> None:
    model = built(olmo2)
    pool = documents(10)
    towards = directions(model, [documents(2, seed=1)], BLOCKS)
    forward = similarities(model, pool, towards, BLOCKS, 60)
    backward = similarities(model, pool[::-1], towards, BLOCKS, 200)
    for there, back in zip(forward, backward, strict=True):
        torch.testing.assert_close(there, back.flip(0), rtol=1e-5, atol=1e-6)


def test_one_token_of_loss_is_enough() -> None:
    model = built(olmo2)
    last = Encoded([1, 40, 41, 42, 43, 44], 5)
    towards = directions(model, [[last]], BLOCKS)
    found = similarities(model, [last, *documents(3)], towards, BLOCKS, 10_000)
    gradient, loss = naive_gradient(model, last, BLOCKS)
    assert float(found.norms[0]) == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert float(found.losses[0]) == pytest.approx(loss, rel=1e-5)


def test_a_copy_of_the_only_query_has_cosine_1_and_nothing_else_has_more() -> None:
    model = built(olmo2)
    query = documents(1, shortest=8, seed=9)
    found = similarities(model, [*documents(6), *query], directions(model, [query], BLOCKS), BLOCKS, 64)
    cosines = (found.dots[:, 0] / found.norms).tolist()
    assert cosines[-1] == pytest.approx(1, abs=1e-5)
    assert max(cosines[:-1]) < 0.99


@pytest.mark.parametrize(("tokens", "width_in", "width_out"), [(1, 8, 8), (2, 40, 6), (9, 3, 5), (50, 4, 7)])
@pytest.mark.parametrize("behaviours", [1, 4])
def test_both_ways_of_counting_give_the_gradients_products(
    tokens: int, width_in: int, width_out: int, behaviours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.Generator().manual_seed(tokens)
    inputs = torch.randn(5, tokens, width_in, generator=noise)
    deltas = torch.randn(5, tokens, width_out, generator=noise)
    towards = torch.randn(behaviours, width_out, width_in, generator=noise)
    gradients = torch.einsum("bto,bti->boi", deltas, inputs).double()
    dots = torch.einsum("boi,koi->bk", gradients, towards.double())
    squares = gradients.pow(2).sum((1, 2))
    monkeypatch.setattr(per_example, "_HELD_NUMBERS", 2 * width_in * width_out)
    for of_dots, of_squares in (
        contributions(inputs, deltas, towards),
        per_example._from_factors(inputs, deltas, towards),
    ):
        torch.testing.assert_close(of_dots, dots, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(of_squares, squares, rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = built(olmo2)
    kept = copy.deepcopy(model.state_dict())
    first = next(model.parameters()).requires_grad_(True)
    pool = documents(4)
    similarities(model, pool, directions(model, [pool], BLOCKS), BLOCKS, 100)
    assert first.requires_grad
    assert [weight.requires_grad for weight in model.parameters()].count(True) == 1
    assert all(weight.grad is None for weight in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_of_half_precision_are_compared_in_float32() -> None:
    model = built(olmo2).bfloat16()
    pool = documents(3)
    found = similarities(model, pool, directions(model, [pool[:1]], BLOCKS), BLOCKS, 100)
    assert float(found.dots[0, 0] / found.norms[0]) == pytest.approx(1, abs=1e-2)


def test_only_linear_weights_of_the_chosen_blocks_count() -> None:
    names = products(built(olmo2), [2])
    assert sorted(names) == [
        "2.mlp.down_proj",
        "2.mlp.gate_proj",
        "2.mlp.up_proj",
        "2.self_attn.k_proj",
        "2.self_attn.o_proj",
        "2.self_attn.q_proj",
        "2.self_attn.v_proj",
    ]


def test_a_query_without_a_gradient_points_nowhere() -> None:
    model = built(olmo2)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    pool = documents(3)
    found = similarities(model, pool, directions(model, [pool], BLOCKS), BLOCKS, 100)
    assert found.dots.tolist() == [[0.0]] * 3
    assert found.norms.tolist() == [0.0] * 3


def test_running_out_of_memory_halves_the_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = built(olmo2)
    pool = documents(9)
    towards = directions(model, [pool[:2]], BLOCKS)
    roomy = similarities(model, pool, towards, BLOCKS, 10_000)
    sizes = []
    whole = hooks.backward_with_hooks

    def cramped(model: Any, documents: list[Encoded], *rest: Any) -> Any:
        sizes.append(len(documents))
        if len(documents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, documents, *rest)

    monkeypatch.setattr(per_example, "backward_with_hooks", cramped)
    found = similarities(model, pool, towards, BLOCKS, 10_000)
    torch.testing.assert_close(found.dots, roomy.dots, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.norms, roomy.norms, rtol=1e-4, atol=0)
    assert sizes[0] == 9
    assert sum(size for size in sizes if size <= 2) == 9
    assert "memory ran out" in caplog.text


def test_a_document_that_never_fits_is_said_to_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(olmo2)
    pool = documents(2)
    towards = directions(model, [pool], BLOCKS)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(per_example, "backward_with_hooks", full)
    with pytest.raises(PhaseError, match=r"tokens does not fit in memory; lower attribute\.max_tokens"):
        similarities(model, pool, towards, BLOCKS, 10_000)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(olmo2)
    pool = documents(2)
    towards = directions(model, [pool], BLOCKS)

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(per_example, "backward_with_hooks", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        similarities(model, pool, towards, BLOCKS, 10_000)
