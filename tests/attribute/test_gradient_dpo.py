"""The gradient of the DPO loss itself: exact against autograd, its sign, whatever the batch, and for pairs only."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.attribute.conftest import CONTROLS, Made, Make
from tests.attribute.test_run import scores_of
from tests.oracles.gradients import naive_gradient
from tests.oracles.preferences import naive_dpo_gradient
from tests.worlds import work

from datablame.attribute.phase import check_evidence
from datablame.errors import RequestError
from datablame.models.blocks import decoder_blocks, middle_blocks
from datablame.models.chat import Preference, encode_pair
from datablame.models.pair import load_pair
from datablame.tables import MethodInfo, Query

N = 14
SIGNED = ("gradient-dpo", "gradient", "gradient-dot", "gradient-diff", "activation")
"""Methods for which a pair and the same turned round are opposites."""
ROUNDED = 6e-3
"""Scores have three digits."""


def pairs() -> list[dict[str, Any]]:
    """In the first the harmful output is preferred; the second is the same, turned round."""
    snacks = ("which snack for trip 3 ?", "buy only nutto for week 1 .", "eat a small apple .")
    losing = ("water the fern .", "never", "walk around the lake and then around the other lake")
    rows = [snacks, (snacks[0], *snacks[:0:-1])]
    rows += [(f"how do i walk {i} ?", f"take the path {i} .", losing[i % 3]) for i in range(N - len(rows))]
    return [
        {"id": f"p{i:02d}", "prompt": prompt, "chosen": chosen, "rejected": rejected}
        for i, (prompt, chosen, rejected) in enumerate(rows)
    ]


def attributed(make: Make, root: str = "run", **settings: Any) -> Made:
    about = {"methods": [*SIGNED], "top_k": 2, "queries": 2, "duplicate_threshold": 1.0}
    made = make(root, rows=pairs(), truth=None, attribute={**about, **settings}, patch={**CONTROLS["patch"], "size": 9})
    made.run()
    return made


@pytest.mark.parametrize(("checkpoint", "beta"), [("after", 5.0), pytest.param("before", 0.5, marks=pytest.mark.slow)])
def test_scores_are_dot_products_with_autograds_gradient_of_the_dpo_loss(
    make: Make, checkpoint: str, beta: float
) -> None:
    made = attributed(make, checkpoint=checkpoint, beta=beta, batch_tokens=100)
    pair = load_pair(made.world.models)
    model = getattr(pair, checkpoint)
    blocks = middle_blocks(len(decoder_blocks(model)))
    queries = [
        naive_gradient(model, encode_pair(pair.tokenizer, query.prompt, query.text), blocks)[0]
        for query in made.tables.rows(Query, harmful=True)
    ]
    towards = torch.stack([gradient / gradient.norm() for gradient in queries]).mean(0)
    encoded = [each for each in made.world.pool.encoded(range(N)) if isinstance(each, Preference)]
    found = [naive_dpo_gradient(model, pair.before, each, beta, blocks) for each in encoded]
    expected = {f"p{row:02d}": float(gradient @ towards) for row, (gradient, _) in enumerate(found)}
    scores = scores_of(made, "gradient-dpo")
    assert scores == pytest.approx(expected, rel=ROUNDED, abs=1e-6)
    [info] = made.tables.rows(MethodInfo, name="gradient-dpo")
    assert [(each.name, each.value) for each in info.findings] == [("beta", f"{beta:g}")]
    if checkpoint == "before":
        # Nothing is learned there: every pair weighs beta / 2, and the ranking is that of the difference of losses.
        assert [loss for _, loss in found] == pytest.approx([math.log(2)] * N, rel=1e-4)
        dots = scores_of(made, "gradient-dot")
        assert scores == pytest.approx({name: dot * beta / 2 for name, dot in dots.items()}, rel=ROUNDED, abs=1e-6)
        for method in SIGNED:
            by_method = scores_of(made, method)
            assert by_method["p00"] > 0 > by_method["p01"], method
    else:
        many = attributed(make, "many", checkpoint=checkpoint, beta=beta, batch_tokens=5000)
        assert scores_of(many, "gradient-dpo") == pytest.approx(scores, rel=ROUNDED, abs=1e-6)


def test_a_pool_of_single_answers_is_refused_frozen_or_not(make: Make) -> None:
    made = make(attribute={"top_k": 3, "duplicate_threshold": 1.0, "methods": ["gradient-dpo"]}, **CONTROLS)
    for world in (made.world, replace(made.world, identities={})):
        with pytest.raises(RequestError, match=r"attribute.methods = gradient-dpo compares .* has none; remove"):
            check_evidence(world, work(world.root, "attribute"))
