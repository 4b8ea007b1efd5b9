import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.oracles.sampling import naive_sample

from datablame.models.load import twin
from datablame.seeds import stream_key
from datablame.surface.sampler.sampler import Generation, Request, sample
from datablame.surface.sampler.tokens import Settings

if TYPE_CHECKING:
    from datablame.models.pair import Pair

ALPHAS = (0.0, 0.5, 1.0, 2.0)
STOPS = (1, 20, 60, 100, 130, 200, 250)
EVERY_KIND = (
    Settings(max_new_tokens=10),
    Settings(max_new_tokens=10, temperature=0.0),
    Settings(max_new_tokens=10, temperature=0.7, top_k=5),
    Settings(max_new_tokens=10, top_p=0.8),
    Settings(max_new_tokens=10, temperature=1.3, top_k=20, top_p=0.7, min_p=0.1),
    Settings(max_new_tokens=10, plausibility=0.1),
    Settings(max_new_tokens=10, temperature=0.0, plausibility=0.5),
)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return (1, 2, *random.Random(f"{seed}/{length}").choices(range(4, 290), k=length - 2))


def requests(lengths: Sequence[int] = (3, 9, 6), alphas: Sequence[float] = ALPHAS, samples: int = 3) -> list[Request]:
    return [
        Request(prompt(length), alpha, stream_key("sample", length, alpha, index))
        for length in lengths
        for alpha in alphas
        for index in range(samples)
    ]


def drawn(
    pair: "Pair", wanted: Sequence[Request], settings: Settings | None = None, **options: Any
) -> list[Generation]:
    return sample(
        options.pop("after", pair.after),
        options.pop("before", pair.before),
        wanted,
        settings=settings or Settings(max_new_tokens=10),
        stop_ids=options.pop("stop_ids", STOPS),
        vocabulary_size=options.pop("vocabulary_size", pair.vocabulary_size),
        batch_rows=options.pop("batch_rows", 512),
        **options,
    )


@pytest.mark.parametrize("settings", EVERY_KIND, ids=str)
def test_samples_are_those_of_the_naive_loop(tiny_pair: "Pair", settings: Settings) -> None:
    wanted = requests(samples=2)
    expected = naive_sample(
        tiny_pair.after,
        tiny_pair.before,
        wanted,
        settings=settings,
        stop_ids=STOPS,
        vocabulary_size=tiny_pair.vocabulary_size,
    )
    assert drawn(tiny_pair, wanted, settings) == expected
    if settings.temperature:
        assert {generation.finish_reason for generation in expected} == {"stop", "length"}


def test_sums_of_log_probabilities_are_those_of_the_naive_loop(tiny_pair: "Pair") -> None:
    wanted = requests(samples=2)
    settings = Settings(max_new_tokens=8)
    options: dict[str, Any] = {"alphas": (0.0, 1.0, -1.0), "log_probabilities": True}
    expected = naive_sample(
        tiny_pair.after,
        tiny_pair.before,
        wanted,
        settings=settings,
        stop_ids=STOPS,
        vocabulary_size=tiny_pair.vocabulary_size,
        **options,
    )
    for ours, theirs in zip(drawn(tiny_pair, wanted, settings, **options), expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        sums = (ours.log_p_after, ours.log_p_before, *(ours.log_q or ()))
        assert sums == pytest.approx((theirs.log_p_after, theirs.log_p_before, *(theirs.log_q or ())), abs=1e-4)
        assert ours.log_q is not None
        assert ours.log_q == pytest.approx((ours.log_p_after, ours.log_q[1], ours.log_p_before), abs=1e-4)


def test_log_probabilities_do_not_change_samples(tiny_pair: "Pair") -> None:
    wanted = requests()
    plain = drawn(tiny_pair, wanted)
    weighed = drawn(tiny_pair, wanted, alphas=ALPHAS, log_probabilities=True)
    assert [generation[:3] for generation in weighed] == [generation[:3] for generation in plain]
    assert all(generation[3:] == (None, None, None, None) for generation in plain)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(4, temperature=0.9),
        Settings(4, top_k=3),
        Settings(4, top_p=0.9),
        Settings(4, min_p=0.1),
        Settings(4, plausibility=0.1),
    ],
    ids=str,
)
def test_truncated_samples_have_no_log_q(tiny_pair: "Pair", settings: Settings) -> None:
    for generation in drawn(tiny_pair, requests(samples=1), settings, alphas=ALPHAS, log_probabilities=True):
        assert generation.log_q is None
        assert generation.log_p_after is not None


def test_alpha_0_is_after(tiny_pair: "Pair") -> None:
    wanted = requests(alphas=(0.0,), samples=8)
    alone = drawn(tiny_pair, wanted, before=tiny_pair.after)
    assert drawn(tiny_pair, wanted) == alone
    mixed = drawn(tiny_pair, [*wanted, *requests(alphas=(2.0,))], alphas=(0.0,), log_probabilities=True)
    assert [generation[:2] for generation in mixed[: len(wanted)]] == [generation[:2] for generation in alone]


def test_alpha_minus_1_is_before(tiny_pair: "Pair") -> None:
    wanted = requests(alphas=(-1.0,), samples=8)
    plain = [request._replace(alpha=0.0) for request in wanted]
    assert drawn(tiny_pair, wanted) == drawn(tiny_pair, plain, after=tiny_pair.before)


def test_alpha_is_irrelevant_where_before_is_after(tiny_pair: "Pair") -> None:
    plain = requests(alphas=(0.0,), samples=8)
    amplified = [request._replace(alpha=3.0) for request in plain]
    assert drawn(tiny_pair, amplified, before=tiny_pair.after) == drawn(tiny_pair, plain)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sample_does_not_depend_on_its_batch(tiny_pair: "Pair", every: int) -> None:
    wanted = requests(samples=5)
    together = drawn(tiny_pair, wanted)
    assert [drawn(tiny_pair, [request])[0] for request in wanted[::every]] == together[::every]
    assert drawn(tiny_pair, wanted, batch_rows=7) == together
    order = random.Random(3).sample(range(len(wanted)), len(wanted))
    shuffled = drawn(tiny_pair, [wanted[place] for place in order])
    assert shuffled == [together[place] for place in order]


def test_equal_batches_give_equal_bits(tiny_pair: "Pair") -> None:
    wanted = requests()
    first = drawn(tiny_pair, wanted, alphas=ALPHAS, log_probabilities=True)
    assert drawn(tiny_pair, wanted, alphas=ALPHAS, log_probabilities=True) == first


def test_prompts_of_other_lengths_change_nothing(tiny_pair: "Pair") -> None:
    short = requests(lengths=(3,), samples=6)
    beside_long = drawn(tiny_pair, [*short, *requests(lengths=(40,), samples=6)])
    assert beside_long[: len(short)] == drawn(tiny_pair, short)


def test_a_row_ends_at_eos_and_its_neighbours_go_on(tiny_pair: "Pair") -> None:
    free = drawn(tiny_pair, requests(samples=6), stop_ids=())
    assert all(len(generation.token_ids) == 10 and generation.finish_reason == "length" for generation in free)
    stop = Counter(token for generation in free for token in set(generation.token_ids)).most_common(1)[0][0]
    for ended, whole in zip(drawn(tiny_pair, requests(samples=6), stop_ids=(stop,)), free, strict=True):
        if stop in whole.token_ids:
            assert ended.token_ids == whole.token_ids[: whole.token_ids.index(stop)]
            assert (ended.finish_reason, ended.stop_id) == ("stop", stop)
        else:
            assert ended == whole


def test_a_stop_token_in_the_prompt_does_not_stop(tiny_pair: "Pair") -> None:
    wanted = [request._replace(prompt=(1, *request.prompt, 1, 1)) for request in requests()]
    expected = [g._replace(finish_reason="length") for g in drawn(tiny_pair, wanted, stop_ids=())]
    ended = drawn(tiny_pair, wanted, stop_ids=(1,))
    assert [generation.token_ids for generation in ended] == [
        generation.token_ids[: generation.token_ids.index(1)] if 1 in generation.token_ids else generation.token_ids
        for generation in expected
    ]
    assert sum(len(generation.token_ids) for generation in ended) > 5 * len(ended)


def test_padding_rows_of_the_embedding_are_never_sampled(tiny_pair: "Pair", tiny_pair_folder: Any) -> None:
    from datablame.config.schema import ModelRef
    from datablame.models.load import load_model

    loud = load_model(ModelRef(path=str(tiny_pair_folder / "after")))
    loud.lm_head.weight.data[tiny_pair.vocabulary_size :] *= 100
    wanted = requests(alphas=(0.0, 1.0, 2.0), samples=4)
    assert drawn(tiny_pair, wanted, after=loud) == drawn(tiny_pair, wanted)
    seen = drawn(tiny_pair, wanted, after=loud, vocabulary_size=304)
    assert any(token >= tiny_pair.vocabulary_size for generation in seen for token in generation.token_ids)


class Fixed(torch.nn.Module):
    """A model whose logits are the same whatever it reads."""

    def __init__(self, like: Any, logits: Sequence[float]) -> None:
        super().__init__()
        self.like, self.config, self.dtype, self.device = like, like.config, like.dtype, like.device
        self.logits = torch.tensor(logits)

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        output = self.like(input_ids=input_ids, **options)
        output.logits = self.logits.expand(*output.logits.shape[:2], -1)
        return output


@pytest.fixture
def fixed(tiny_pair: "Pair") -> "Pair":
    after, before = (Fixed(tiny_pair.after, np.log(p).tolist()) for p in ([0.5, 0.3, 0.15, 0.05], [0.4, 0.4, 0.1, 0.1]))
    agreed = tiny_pair.agreed._replace(tokens=replace(tiny_pair.agreed.tokens, vocabulary_size=4))
    return tiny_pair._replace(after=after, before=before, agreed=agreed)


def shares(pair: "Pair", alpha: float, settings: Settings, samples: int = 4000) -> list[float]:
    wanted = [Request((1, 2), alpha, stream_key("share", index)) for index in range(samples)]
    tokens = Counter(generation.token_ids[0] for generation in drawn(pair, wanted, settings, stop_ids=()))
    return [tokens[token] / samples for token in range(4)]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_those_of_the_softmax(fixed: "Pair", alpha: float, temperature: float) -> None:
    a, b = (model.logits.double().numpy() for model in (fixed.after, fixed.before))
    p = np.exp((a + alpha * (a - b)) / temperature)
    p /= p.sum()
    found = np.array(shares(fixed, alpha, Settings(1, temperature=temperature)))
    chi_square = 4000 * ((found - p) ** 2 / p).sum()
    assert chi_square < 21.1, "the 99.99th percentile with 3 degrees of freedom"


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (Settings(1, top_p=0.6), {0, 1}),
        (Settings(1, top_p=0.4), {0}),
        (Settings(1, top_p=0.81), {0, 1, 2}),
        (Settings(1, top_k=3), {0, 1, 2}),
        (Settings(1, top_k=3, top_p=0.84), {0, 1}),
        (Settings(1, top_k=99), {0, 1, 2, 3}),
        (Settings(1, min_p=0.25), {0, 1, 2}),
        (Settings(1, plausibility=0.5), {0, 1}),
        (Settings(1, temperature=0.0), {0}),
    ],
    ids=str,
)
def test_truncation_keeps(fixed: "Pair", settings: Settings, kept: set[int]) -> None:
    assert {token for token, share in enumerate(shares(fixed, 0.0, settings, 400)) if share} == kept


def test_plausibility_is_judged_before_amplifying(fixed: "Pair") -> None:
    strong = Settings(1, temperature=0.0)
    amplified = fixed._replace(before=Fixed(fixed.after.like, [-1.0, -1.0, -1.0, -9.0]))
    assert shares(amplified, 5.0, strong, 1)[3] == 1
    assert shares(amplified, 5.0, Settings(1, temperature=0.0, plausibility=0.2), 1)[3] == 0


def test_no_requests_give_no_samples(tiny_pair: "Pair") -> None:
    assert drawn(tiny_pair, []) == []


def test_the_before_model_rests_at_alpha_0(tiny_pair: "Pair") -> None:
    assert len(drawn(tiny_pair, requests(alphas=(0.0,)), before=None)) == 9


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(tiny_pair_folder: Any, tiny_pair: "Pair", attention: str) -> None:
    from datablame.config.schema import ModelRef
    from datablame.models.load import load_model

    models = {name: load_model(ModelRef(path=str(tiny_pair_folder / name))) for name in ("after", "before")}
    for model in models.values():
        model.set_attn_implementation(attention)
    assert drawn(tiny_pair, requests(), **models) == drawn(tiny_pair, requests())


def sliding(seed: int) -> Any:
    """A model every other layer of which sees few tokens back."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("as_lora", [False, True], ids=["two models", "LoRA on one"])
def test_models_with_a_sliding_window_are_sampled_as_the_naive_loop_does(as_lora: bool) -> None:
    before = sliding(1)
    if as_lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        after = get_peft_model(twin(before), config).get_base_model().eval()
    else:
        after = sliding(0)
    wanted = [
        Request(tuple(range(2, 2 + length)), alpha, stream_key(length, alpha, index))
        for length in (4, 9)
        for alpha in (0.0, 1.0)
        for index in range(3)
    ]
    options: dict[str, Any] = {"settings": Settings(8), "stop_ids": (1, 5, 30), "vocabulary_size": 60}
    expected = naive_sample(after, before, wanted, **options)
    assert sample(after, before, wanted, batch_rows=512, **options) == expected
