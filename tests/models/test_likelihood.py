import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.oracles.likelihood import naive_divergence, naive_nll

from datablame.models.chat import Encoded
from datablame.models.likelihood import Total, divergence, negative_log_likelihood
from datablame.seeds import generator

if TYPE_CHECKING:
    from datablame.models.pair import Pair

AT_ONCE = 4096


@pytest.fixture(scope="module")
def answers() -> list[Encoded]:
    """Ragged answers, one of them to a prompt of one token and one of a single token."""
    random = generator("answers")
    shapes = [(1, 9), (7, 8), (12, 30), (3, 4), (5, 21), (12, 17)]
    return [Encoded([int(token) for token in random.integers(4, 290, n)], prompt) for prompt, n in shapes]


def contexts(answers: list[Encoded]) -> list[list[int]]:
    return [answer.ids[:place] for answer in answers for place in range(answer.prompt_tokens, len(answer.ids))]


def total(model: Any, other: Any, answers: list[Encoded], batch_tokens: int = AT_ONCE) -> Total:
    return divergence(model, other, answers, vocabulary_size=290, batch_tokens=batch_tokens)


def nll(model: Any, answers: list[Encoded], batch_tokens: int = AT_ONCE) -> Total:
    return negative_log_likelihood(model, answers, vocabulary_size=290, batch_tokens=batch_tokens)


def test_likelihood_is_that_of_one_token_after_another(tiny_pair: "Pair", answers: list[Encoded]) -> None:
    found = nll(tiny_pair.after, answers)
    assert found.tokens == len(contexts(answers))
    assert found.mean == pytest.approx(naive_nll(tiny_pair.after, answers, 290), rel=1e-5)


def test_divergence_is_the_sum_over_the_vocabulary_at_every_position(tiny_pair: "Pair", answers: list[Encoded]) -> None:
    found = total(tiny_pair.after, tiny_pair.before, answers)
    assert found.tokens == len(contexts(answers))
    expected = naive_divergence(tiny_pair.after, tiny_pair.before, contexts(answers), 290)
    assert found.mean == pytest.approx(expected, rel=1e-5)
    assert found.mean > 0.1
    turned = total(tiny_pair.before, tiny_pair.after, answers)
    assert turned.mean == pytest.approx(
        naive_divergence(tiny_pair.before, tiny_pair.after, contexts(answers), 290), rel=1e-5
    )


def test_a_model_does_not_diverge_from_itself(tiny_pair: "Pair", answers: list[Encoded]) -> None:
    assert total(tiny_pair.after, copy.deepcopy(tiny_pair.after), answers).nats == 0


def test_divergence_is_never_negative(tiny_pair: "Pair", answers: list[Encoded]) -> None:
    near = copy.deepcopy(tiny_pair.after)
    with torch.no_grad():
        near.get_output_embeddings().weight[7] += 1e-6
    for answer in answers:
        assert total(tiny_pair.after, near, [answer]).nats >= 0


@pytest.mark.parametrize("batch_tokens", [1, 25, 60])
def test_neither_batches_nor_padding_nor_order_play_a_part(
    tiny_pair: "Pair", answers: list[Encoded], batch_tokens: int
) -> None:
    likelihood, drift = nll(tiny_pair.after, answers), total(tiny_pair.after, tiny_pair.before, answers)
    again = nll(tiny_pair.after, answers[::-1], batch_tokens)
    assert again.tokens == likelihood.tokens
    assert again.nats == pytest.approx(likelihood.nats, rel=1e-5)
    other = total(tiny_pair.after, tiny_pair.before, answers[::-1], batch_tokens)
    assert other.tokens == drift.tokens
    assert other.nats == pytest.approx(drift.nats, rel=1e-5)


def test_padding_rows_of_the_vocabulary_have_no_share(tiny_pair: "Pair", answers: list[Encoded]) -> None:
    loud = copy.deepcopy(tiny_pair.after)
    with torch.no_grad():
        loud.get_output_embeddings().weight[290:] *= 100
    assert nll(loud, answers).nats == nll(tiny_pair.after, answers).nats
    assert total(loud, tiny_pair.after, answers).nats == 0


def test_only_the_response_counts(tiny_pair: "Pair", answers: list[Encoded]) -> None:
    longest = max(answers, key=lambda answer: len(answer.ids))
    later = longest._replace(prompt_tokens=longest.prompt_tokens + 5)
    first = Encoded(longest.ids[: later.prompt_tokens], longest.prompt_tokens)
    whole, begun, rest = (nll(tiny_pair.after, [each]) for each in (longest, first, later))
    assert whole.tokens == begun.tokens + rest.tokens
    assert whole.nats == pytest.approx(begun.nats + rest.nats, rel=1e-5)


def test_a_model_that_caps_its_logits_is_measured_with_the_cap(tiny_pair: "Pair", answers: list[Encoded]) -> None:
    class Capped(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def get_output_embeddings(self) -> Any:
            return self.model.get_output_embeddings()

        def forward(self, **inputs: Any) -> Any:
            output = self.model(**inputs)
            output.logits = 3 * torch.tanh(output.logits / 3)
            return output

    capped = Capped(tiny_pair.after)
    assert nll(capped, answers).mean == pytest.approx(naive_nll(capped, answers, 290), rel=1e-5)
