"""Tiny models of many architectures, each part of the machinery held against the same done plainly."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, PAGE, SLOW, VOCABULARY, built, page, read_by
from tests.oracles.gradients import naive_gradient, naive_similarities
from tests.oracles.preferences import naive_log_ratio, naive_pair_gradient
from tests.oracles.sampling import naive_sample

from datablame.attribute.kernels.per_example import directions, similarities
from datablame.models.blocks import decoder_blocks
from datablame.models.chat import Encoded, Preference
from datablame.models.likelihood import log_ratios
from datablame.models.lora import Start, adapted, set_factors
from datablame.models.products import coverage
from datablame.models.training import Recipe, train
from datablame.patch.finetune import train_adapters
from datablame.surface.sampler.sampler import NotFinite, Request, sample
from datablame.surface.sampler.tokens import Settings

every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ARCHITECTURES]
)
model = functools.lru_cache(2)(built)
REQUESTS = [
    Request((3, 4, 5), 0.0, 1),
    Request((3, 4, 5), 1.0, 2),
    Request((7, 8, 9, 10, 11, 12), 0.0, 3),
    Request((7, 8, 9, 10, 11, 12), 2.0, 4),
]


def documents(n: int, seed: int) -> list[Encoded]:
    noise = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 13, (n,), generator=noise).tolist()
    return [Encoded(torch.randint(3, VOCABULARY, (k,), generator=noise).tolist(), k // 2) for k in lengths]


@every
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_outputs_and_their_log_probabilities_are_those_of_a_plain_loop(name: str, temperature: float) -> None:
    asked: dict[str, Any] = {"settings": Settings(3, temperature), "stop_ids": [2], "vocabulary_size": VOCABULARY}
    asked |= {"log_probabilities": True, "alphas": (0.0, 1.0)}
    requests = REQUESTS if temperature else REQUESTS[1:3]
    found = sample(model(name), model(name, 6), requests, batch_rows=3, **asked)
    naive = naive_sample(model(name), model(name, 6), requests, **asked)
    assert [(one.token_ids, one.finish_reason) for one in found] == [
        (one.token_ids, one.finish_reason) for one in naive
    ]
    for one, other in zip(found, naive, strict=True):
        assert one.log_p_after == pytest.approx(other.log_p_after, abs=1e-4)
        assert one.log_p_before == pytest.approx(other.log_p_before, abs=1e-4)
        assert one.log_q == (None if other.log_q is None else pytest.approx(other.log_q, abs=1e-4))


@every
def test_gradients_of_documents_and_pairs_are_those_of_autograd(name: str) -> None:
    own, pool, queries = model(name), documents(3, 0), [documents(2, 1), documents(1, 2)]
    blocks = [len(decoder_blocks(own)) - 2, len(decoder_blocks(own)) - 1]
    towards, naive = directions(own, queries, blocks), naive_similarities(own, pool, queries, blocks)
    found = similarities(own, pool, towards, blocks, 30)
    torch.testing.assert_close(found.norms, naive.norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.losses, naive.losses.double(), rtol=1e-4, atol=0)
    cosines = (found.dots / found.norms[:, None], naive.dots / naive.norms[:, None])
    torch.testing.assert_close(*cosines, rtol=1e-4, atol=1e-5)
    pair = Preference(Encoded([3, 4, 5, 6, 7], 3), Encoded([3, 4, 5, 8, 9, 10, 11], 3))
    gradient, loss = naive_pair_gradient(own, pair, blocks)
    of_pair = similarities(own, [pair], towards, blocks, 30)
    assert float(of_pair.norms) == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert float(of_pair.losses) == pytest.approx(loss, rel=1e-4)
    [unit, _] = [g / g.norm() for g, _ in (naive_gradient(own, query, blocks) for query in queries[0])]
    assert float(gradient @ unit) == pytest.approx(
        float(similarities(own, [pair], directions(own, [queries[0][:1]], blocks), blocks, 30).dots), rel=1e-3, abs=1e-5
    )
    with torch.no_grad():
        assert float(log_ratios(own, [pair])) == pytest.approx(naive_log_ratio(own, pair), abs=1e-4)


@every
def test_adapters_side_by_side_learn_what_peft_alone_learns(name: str) -> None:
    own, start, recipe = model(name), Start(2, None, 3), Recipe(steps=2, batch=2, learning_rate=1e-2, warmup_steps=1)
    data, order = [documents(3, 4), documents(3, 5)], [[0, 1], [1, 2]]
    probe = torch.tensor([documents(1, 6)[0].ids])

    @torch.no_grad()
    def logits() -> torch.Tensor:
        found: torch.Tensor = own(input_ids=probe, use_cache=False).logits
        return found

    untrained = logits()
    together = train_adapters(own, data, order, recipe, start, 5.0)
    for examples, trained in zip(data, together, strict=True):
        with adapted(own, *start) as adapter:
            losses = train(own, examples, order, recipe)
            alone = logits()
            set_factors(adapter, trained.factors)
            found = logits()
        assert trained.losses == pytest.approx(losses, rel=1e-3)
        assert float((alone - untrained).norm()) > 10 * float((found - alone).norm())
    assert torch.equal(logits(), untrained)


@every
def test_coverage_is_known_without_weights(name: str) -> None:
    from datablame.models.pair import without_weights

    own = model(name)
    blocks = range(len(decoder_blocks(own)))
    assert coverage(without_weights(own.config), blocks) == pytest.approx(coverage(own, blocks), abs=0.01)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("broken", ["after", "before"])
def test_logits_that_are_not_finite_stop_sampling_and_say_whose_they_are(temperature: float, broken: str) -> None:
    pair = {"after": built("llama"), "before": built("llama", 6)}
    with torch.no_grad():
        pair[broken].get_output_embeddings().weight[7] = float("nan")
    settings = Settings(4, temperature, top_p=0.9)
    own: dict[str, Any] = {"stop_ids": [2], "vocabulary_size": VOCABULARY}
    with pytest.raises(NotFinite) as caught:
        sample(pair["after"], pair["before"], REQUESTS, settings=settings, batch_rows=3, log_probabilities=True, **own)
    assert caught.value.model == broken


def test_windows_and_states_are_read_as_they_are() -> None:
    """The kinds of the table, by what each architecture is known to have."""
    kinds = {name: read_by(model(name)) for name in ("llama", "mistral", "gpt_neo", "mamba", "lfm2", "rwkv")}
    assert kinds["llama"] == "a batch that stays full"
    assert kinds["mistral"] == kinds["gpt_neo"] == "its own cache"
    assert kinds["mamba"] == kinds["lfm2"] == "its own cache, prompts of one length together"
    assert kinds["rwkv"] == "reading everything anew"


def test_the_page_is_what_the_architectures_are() -> None:
    assert Path(PAGE).read_text() == page(), "python -m tests.architectures writes it anew"
    assert len(ARCHITECTURES.keys() - SLOW) >= 24
