"""A batch whose rows come and go draws what each request would have drawn alone."""

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.oracles.sampling import naive_sample
from tests.surface.test_sampler import STOPS, drawn, prompt, requests

from datablame.seeds import stream_key
from datablame.surface.sampler.decoder import Prompts, Ring
from datablame.surface.sampler.sampler import Request
from datablame.surface.sampler.tokens import Settings

if TYPE_CHECKING:
    from datablame.models.pair import Pair


class Watched(torch.nn.Module):
    """A model that writes down how many rows and tokens each forward pass had."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config, self.device, self.dtype = model, model.config, model.device, model.dtype
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, input_ids: torch.Tensor, position_ids: Any = None, **options: Any) -> Any:
        self.shapes.append(tuple(input_ids.shape))
        return self.model(input_ids=input_ids, position_ids=position_ids, **options)

    @property
    def prefills(self) -> list[tuple[int, ...]]:
        return [shape for shape in self.shapes if shape[1] > 1]

    @property
    def steps(self) -> list[int]:
        return [shape[0] for shape in self.shapes if shape[1] == 1]


def ragged(n: int, *, longest: int = 12) -> list[Request]:
    lengths = random.Random(n).choices(range(3, longest), k=6)
    return [
        Request(prompt(lengths[i % 6], i % 6), (0.0, 1.0, -1.0, 2.0)[i % 4], stream_key("ragged", i)) for i in range(n)
    ]


@pytest.mark.parametrize("batch_rows", [1, 2, 5, 13])
def test_refilled_batches_draw_what_the_naive_loop_draws(tiny_pair: "Pair", batch_rows: int) -> None:
    """Twelve outputs of up to 9 tokens in few rows: the ring of 19 columns goes round several times."""
    wanted, settings = ragged(12), Settings(9)
    expected = naive_sample(
        tiny_pair.after,
        tiny_pair.before,
        wanted,
        settings=settings,
        stop_ids=STOPS,
        vocabulary_size=tiny_pair.vocabulary_size,
    )
    assert drawn(tiny_pair, wanted, settings, batch_rows=batch_rows) == expected
    lengths = {len(generation.token_ids) for generation in expected}
    assert len(lengths) > 3, "rows finish at different steps"


def test_log_probabilities_do_not_depend_on_refilling(tiny_pair: "Pair") -> None:
    wanted = ragged(20)
    options: dict[str, Any] = {"alphas": (0.0, 1.0), "log_probabilities": True}
    whole = drawn(tiny_pair, wanted, **options)
    for one, other in zip(drawn(tiny_pair, wanted, batch_rows=3, **options), whole, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_q == pytest.approx(other.log_q, abs=1e-4)


def test_equal_requests_in_equal_batches_give_equal_bits(tiny_pair: "Pair") -> None:
    options: dict[str, Any] = {"alphas": (0.0, 1.0), "log_probabilities": True, "batch_rows": 4}
    assert drawn(tiny_pair, ragged(20), **options) == drawn(tiny_pair, ragged(20), **options)


def test_the_batch_stays_full_while_requests_wait(tiny_pair: "Pair") -> None:
    after = Watched(tiny_pair.after)
    wanted = [request._replace(alpha=1.0) for request in ragged(40)]
    made = drawn(tiny_pair, wanted, after=after, batch_rows=8)
    steps = after.steps
    assert max(steps) == 8
    tail = 10
    assert set(steps[:-tail]) == {8}
    # A token that ends a row is drawn, not read.
    assert sum(steps) == sum(len(g.token_ids) - (g.finish_reason == "length") for g in made)


def test_each_prompt_is_read_once_by_each_model(tiny_pair: "Pair") -> None:
    after, before = Watched(tiny_pair.after), Watched(tiny_pair.before)
    drawn(tiny_pair, ragged(48), after=after, before=before, batch_rows=6)
    assert sum(rows for rows, _ in after.prefills) == sum(rows for rows, _ in before.prefills) == 6


def test_the_before_model_reads_amplified_rows_only(tiny_pair: "Pair") -> None:
    after, before = Watched(tiny_pair.after), Watched(tiny_pair.before)
    made = drawn(tiny_pair, ragged(24), after=after, before=before)
    read = [len(g.token_ids) - (g.finish_reason == "length") for g in made]
    assert sum(after.steps) == sum(read)
    assert sum(before.steps) == sum(n for n, request in zip(read, ragged(24), strict=True) if request.alpha != 0)


def test_prompts_are_given_up_and_read_again_alike(tiny_pair: "Pair") -> None:
    texts = [prompt(length) for length in (3, 5, 6, 9)]
    short = Prompts(tiny_pair.after, texts, 1, most_tokens=8)
    with torch.inference_mode():
        first = [short.chunks_of([number])[0][0] for number in range(4)]
        again = [short.chunks_of([number])[0][0] for number in range(4)]
    for one, other in zip(first, again, strict=True):
        assert one is not other
        assert torch.equal(one.logits, other.logits)


def test_chunks_of_prompts_hold_few_prompts_and_few_tokens(tiny_pair: "Pair") -> None:
    after = Watched(tiny_pair.after)
    prompts = Prompts(after, [(1, 2)] * 3 + [(1,) * 100] * 50, 48, most_tokens=10**6)
    with torch.inference_mode():
        prompts.chunks_of(range(53))
    assert after.shapes == [(40, 100), (13, 100)]


def test_a_wrapped_ring_cuts_a_prompt_in_two() -> None:
    ring = Ring(10)
    ring.restart(4)
    assert ring.behind(4) == [(slice(0, 4), slice(0, 4))]
    assert ring.span == 4
    assert ring.behind(6) == [(slice(0, 2), slice(8, 10)), (slice(2, 6), slice(0, 4))]
    assert ring.span == 10
    assert [ring.advance() for _ in range(7)] == [4, 5, 6, 7, 8, 9, 0]
    ring.column = 0
    assert ring.behind(3) == [(slice(0, 3), slice(7, 10))]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree_when_refilled(
    tiny_pair: "Pair", attention: str, tiny_pair_folder: Any
) -> None:
    from datablame.config.schema import ModelRef
    from datablame.models.load import load_model

    models = {name: load_model(ModelRef(path=str(tiny_pair_folder / name))) for name in ("after", "before")}
    for model in models.values():
        model.set_attn_implementation(attention)
    assert drawn(tiny_pair, ragged(16), batch_rows=4, **models) == drawn(tiny_pair, ragged(16))


def test_sixteen_bits_are_mixed_in_float32(tiny_pair: "Pair") -> None:
    """A difference that bfloat16 would round away decides: the logits are exact in it, their mixture is not."""
    from tests.surface.test_sampler import Fixed

    a, b = [8.0, 8.0, 0.0, 0.0], [7.96875, 8.0, 0.0, 0.0]
    models = {}
    for name, logits in (("after", a), ("before", b)):
        model = Fixed(tiny_pair.after, logits)
        model.logits = model.logits.bfloat16()
        models[name] = model
    greedy = Settings(1, temperature=0.0)
    wanted = [Request((1, 2), 0.1, 1), Request((1, 2), -0.1, 2)]
    made = drawn(tiny_pair, wanted, greedy, vocabulary_size=4, stop_ids=(), **models)
    assert [generation.token_ids for generation in made] == [(0,), (1,)]


def test_requests_of_one_length_need_no_mask_until_one_joins(tiny_pair: "Pair") -> None:
    masks: list[bool] = []

    class Masked(Watched):
        def forward(self, input_ids: torch.Tensor, position_ids: Any = None, **options: Any) -> Any:
            masks.append(options["attention_mask"] is not None)
            return super().forward(input_ids, position_ids, **options)

    wanted = requests(lengths=(6,), alphas=(0.0,), samples=20)
    whole = drawn(tiny_pair, wanted, after=Masked(tiny_pair.after))
    assert not any(masks)
    assert drawn(tiny_pair, wanted, after=Masked(tiny_pair.after), batch_rows=3) == whole
    assert any(masks)
