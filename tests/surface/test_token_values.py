"""Log-probabilities of single tokens: right, of every token drawn, and no burden on what is there without them."""

import pytest
from tests.oracles.sampling import naive_sample
from tests.surface.test_sampler import ALPHAS, EVERY_KIND, STOPS, drawn, requests

from datablame.models.pair import Pair
from datablame.surface.sampler.tokens import Settings


@pytest.mark.parametrize("settings", EVERY_KIND, ids=str)
def test_each_token_has_the_log_probabilities_of_the_naive_loop(tiny_pair: Pair, settings: Settings) -> None:
    wanted = requests(alphas=(0.0, 0.7, 2.0), samples=2)
    size = tiny_pair.vocabulary_size
    both = (tiny_pair.after, tiny_pair.before)
    expected = naive_sample(*both, wanted, settings=settings, stop_ids=STOPS, vocabulary_size=size, per_token=True)
    for ours, theirs in zip(drawn(tiny_pair, wanted, settings, per_token=True), expected, strict=True):
        assert ours[:6] == theirs[:6], "no sums were asked for"
        assert ours.token_log_p is not None
        assert theirs.token_log_p is not None
        assert len(ours.token_log_p) == len(ours.token_ids) + (ours.stop_id is not None)
        for one, other in zip(ours.token_log_p, theirs.token_log_p, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("alphas", [ALPHAS, (1.0,), ()], ids=["the own alpha among the sums", "not for all", "no sums"])
def test_the_values_add_up_to_the_sums_which_they_leave_as_they_were(
    tiny_pair: Pair, alphas: tuple[float, ...]
) -> None:
    wanted = requests(samples=2)
    plain = drawn(tiny_pair, wanted, alphas=alphas, log_probabilities=True)
    detailed = drawn(tiny_pair, wanted, alphas=alphas, log_probabilities=True, per_token=True)
    assert [generation[:6] for generation in detailed] == [generation[:6] for generation in plain]
    assert {generation.stop_id is None for generation in detailed} == {True, False}
    for request, generation in zip(wanted, detailed, strict=True):
        assert generation.token_log_p is not None
        after, before, own = (sum(column) for column in zip(*generation.token_log_p, strict=True))
        assert (after, before) == pytest.approx((generation.log_p_after, generation.log_p_before), rel=1e-3, abs=1e-2)
        if request.alpha in alphas:
            assert generation.log_q is not None
            assert own == pytest.approx(generation.log_q[alphas.index(request.alpha)], rel=1e-3, abs=1e-2)
        if request.alpha == 0:
            assert all(one == last for one, _, last in generation.token_log_p)


def test_the_values_do_not_depend_on_the_batch(tiny_pair: Pair) -> None:
    wanted = requests(samples=5)
    together = drawn(tiny_pair, wanted, alphas=ALPHAS, per_token=True)
    for ours, theirs in zip(drawn(tiny_pair, wanted, batch_rows=7, per_token=True), together, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.token_log_p is not None
        assert theirs.token_log_p is not None
        for one, other in zip(ours.token_log_p, theirs.token_log_p, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=2e-3)


def test_a_value_that_16_bits_do_not_hold_is_the_least_that_they_do(tiny_pair: Pair) -> None:
    import torch

    from datablame.models.load import twin

    loud = twin(tiny_pair.before)
    loud.lm_head.weight = torch.nn.Parameter(tiny_pair.before.lm_head.weight * 1e7)
    (made,) = drawn(tiny_pair, requests(lengths=(6,), alphas=(0.0,), samples=1), before=loud, per_token=True)
    assert made.token_log_p is not None
    assert min(before for _, before, _ in made.token_log_p) == -65504
