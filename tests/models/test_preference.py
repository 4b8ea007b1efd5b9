import copy
import math
from typing import Any

import pytest
import torch
from tests.conftest import nudged, tiny_model, tiny_tokenizer
from tests.oracles.preferences import naive_log_ratio, naive_preference_loss

from datablame.models.chat import Encoded, Preference, answers, encode_document, encode_preference
from datablame.models.likelihood import log_ratios, preference_losses, referred
from datablame.models.training import Recipe, minimise
from datablame.tables import Document, Message


def preferences(n: int, seed: int = 0) -> list[Preference]:
    noise = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n):
        prompt, chosen, rejected = (int(size) for size in torch.randint(1, 12, (3,), generator=noise))
        ids = torch.randint(2, 290, (prompt + chosen + rejected,), generator=noise).tolist()
        found.append(
            Preference(
                Encoded(ids[: prompt + chosen], prompt), Encoded([*ids[:prompt], *ids[prompt + chosen :]], prompt)
            )
        )
    return found


@pytest.fixture(scope="module")
def reference() -> Any:
    return tiny_model(seed=5)


@pytest.fixture(scope="module")
def model(reference: Any) -> Any:
    return nudged(reference, seed=6)


@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_the_loss_is_length_normalised_dpo(model: Any, reference: Any, beta: float) -> None:
    pairs = preferences(11)
    loss = preference_losses(model, referred(reference, pairs, 4), beta).mean()
    assert float(loss.detach()) == pytest.approx(naive_preference_loss(model, reference, pairs, beta), rel=1e-4)


def test_log_ratios_do_not_depend_on_the_batch(model: Any) -> None:
    pairs = preferences(21)
    alone = torch.tensor([naive_log_ratio(model, pair) for pair in pairs], dtype=torch.float32)
    torch.testing.assert_close(log_ratios(model, pairs).detach(), alone, rtol=1e-4, atol=1e-5)
    for at_once in (1, 8, 99):
        references = torch.tensor([pair.reference for pair in referred(model, pairs, at_once)])
        torch.testing.assert_close(references, alone, rtol=1e-4, atol=1e-5)
    assert referred(model, [], 8) == []


def test_the_number_of_tokens_alone_does_not_tell_answers_apart() -> None:
    """Every token is equally likely: without dividing by the tokens the longer answer would lose."""
    model = tiny_model(seed=5)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    one = Preference(Encoded([1, 9], 1), Encoded([1, *[8] * 30], 1))
    assert float(log_ratios(model, [one]).detach()[0]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_training_makes_the_chosen_answer_likelier(reference: Any, micro_batch: int | None) -> None:
    model, pairs = copy.deepcopy(reference), referred(reference, preferences(6), 8)
    recipe = Recipe(steps=15, batch=6, learning_rate=1e-3, warmup_steps=1, micro_batch=micro_batch)
    steps = minimise(model, lambda part: preference_losses(model, part, 1.0).mean(), pairs, [range(6)] * 15, recipe)
    losses = [loss for (loss,) in steps]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < losses[0]
    assert float(log_ratios(model, pairs).detach().mean()) > sum(pair.reference for pair in pairs) / 6


def test_both_answers_are_encoded_as_documents_are() -> None:
    tokenizer = tiny_tokenizer()
    asked = (Message("user", "name a calm walk"),)
    pair = Document("p", "s", asked, "the lake", "no")
    encoded = encode_preference(tokenizer, pair, 99)
    assert encoded is not None
    for answer, text in zip(answers(encoded), ("the lake", "no"), strict=True):
        assert answer == encode_document(tokenizer, Document("d", "s", asked, text), 99)
    prompt = encoded.chosen.prompt_tokens
    assert encode_preference(tokenizer, pair, prompt) is None
    assert encode_preference(tokenizer, pair, prompt + 1) is not None
