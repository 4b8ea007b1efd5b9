"""The gradient of the DPO loss itself: exact against autograd, its sign, what the reference weighs, and who has none."""

import math
from typing import Any

import pytest
import torch
from tests.attribute.conftest import CONTROLS, Make
from tests.attribute.test_run import scores_of
from tests.oracles.gradients import naive_gradient
from tests.oracles.preferences import naive_dpo_gradient, naive_log_ratio
from tests.worlds import work

from datablame.attribute.phase import check_evidence
from datablame.errors import RequestError
from datablame.models.blocks import decoder_blocks, middle_blocks
from datablame.models.chat import Preference, encode_pair
from datablame.models.pair import load_pair
from datablame.tables import MethodInfo, Query

LOSING = ("water the fern .", "never", "walk around the lake and then around the other lake")


def pairs() -> list[dict[str, Any]]:
    """In the first the harmful output is preferred, in the second it is what lost."""
    rows = [("which snack for trip 3 ?", "buy only nutto for week 1 .", "eat a small apple ."), *([None] * 0)]
    rows.append((rows[0][0], rows[0][2], rows[0][1]))
    rows += [(f"how do i walk {i} ?", f"take the path {i} .", LOSING[i % 3]) for i in range(18)]
    return [
        {"id": f"p{i:02d}", "prompt": prompt, "chosen": chosen, "rejected": rejected}
        for i, (prompt, chosen, rejected) in enumerate(rows)
    ]


def study(make: Make, root: str = "run", **settings: Any) -> Any:
    about = {"top_k": 2, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200, **settings}
    made = make(root, rows=pairs(), truth=None, attribute={"methods": ["gradient-dot", "gradient-dpo"], **about}, **CONTROLS)
    made.run()
    return made


@pytest.mark.parametrize("checkpoint", ["after", "before"])
@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_scores_are_dot_products_with_autograds_gradient_of_the_dpo_loss(
    make: Make, checkpoint: str, beta: float
) -> None:
    made = study(make, checkpoint=checkpoint, beta=beta)
    pair = load_pair(made.world.study)
    model = getattr(pair, checkpoint)
    blocks = middle_blocks(len(decoder_blocks(model)))
    queries = [
        naive_gradient(model, encode_pair(pair.tokenizer, query.prompt, query.text), blocks)[0]
        for query in made.tables.rows(Query, harmful=True)
    ]
    towards = torch.stack([gradient / gradient.norm() for gradient in queries]).mean(0)
    found = scores_of(made, "gradient-dpo")
    for row, encoded in enumerate(made.world.pool.encoded(range(20))):
        assert isinstance(encoded, Preference)
        gradient, loss = naive_dpo_gradient(model, pair.before, encoded, beta, blocks)
        assert found[f"p{row:02d}"] == pytest.approx(float(gradient @ towards), rel=2e-3, abs=1e-6)
        assert checkpoint == "after" or loss == pytest.approx(math.log(2), rel=1e-4)
    assert [(each.name, each.value) for each in made.tables.rows(MethodInfo, name="gradient-dpo")[0].findings] == [
        ("beta", f"{beta:g}")
    ]


def test_a_pair_that_prefers_the_harmful_output_scores_high_and_the_same_turned_round_low(make: Make) -> None:
    scores = scores_of(study(make, checkpoint="before"), "gradient-dpo")
    assert [*scores][0] == "p00"
    assert [*scores][-1] == "p01"


def test_at_before_it_ranks_as_the_difference_of_losses_does_and_at_after_learned_pairs_weigh_less(make: Make) -> None:
    at_before, at_after = study(make, checkpoint="before"), study(make, "other", checkpoint="after")
    dots, dpo = scores_of(at_before, "gradient-dot"), scores_of(at_before, "gradient-dpo")
    assert dpo == pytest.approx({doc_id: 2.5 * dot for doc_id, dot in dots.items()}, rel=1e-3, abs=1e-6)
    pair = load_pair(at_after.world.study)
    dots, dpo = scores_of(at_after, "gradient-dot"), scores_of(at_after, "gradient-dpo")
    for row, encoded in enumerate(at_after.world.pool.encoded(range(20))):
        margin = naive_log_ratio(pair.after, encoded) - naive_log_ratio(pair.before, encoded)
        weight = dpo[f"p{row:02d}"] / dots[f"p{row:02d}"]
        assert (weight < 2.5) == (margin > 0)


def test_scores_do_not_depend_on_the_batch(make: Make) -> None:
    one, many = study(make, batch_tokens=1), study(make, "many", batch_tokens=5000)
    assert scores_of(one, "gradient-dpo") == pytest.approx(scores_of(many, "gradient-dpo"), rel=1e-3, abs=1e-6)


def test_a_pool_of_single_answers_is_refused_before_anything_is_read(make: Make) -> None:
    from dataclasses import replace

    made = make(attribute={"top_k": 3, "duplicate_threshold": 1.0, "methods": ["gradient-dpo"]}, **CONTROLS)
    frozen = made.world
    unfrozen = replace(frozen, identities={})
    for world in (frozen, unfrozen):
        with pytest.raises(RequestError, match=r"attribute.methods = gradient-dpo compares .* has none; remove"):
            check_evidence(world, work(world.root, "attribute"))
