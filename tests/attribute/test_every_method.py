"""What holds of every method, ours to come too: a copy of the query is found first, and nothing hangs on the machine.

All methods run in one tiny study, twice: as it is, and with its pool reversed, every document alone, in other shards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attribute.conftest import CONTROLS, documents, maker, sample
from tests.attribute.test_methods import evidence, score
from tests.attribute.test_run import scores_of
from tests.attribute.trajectory import made_trajectory

from datablame.attribute import loop
from datablame.attribute.registry import METHODS

BLIND = {"random", "loss", "gradient-norm", "length", "refusal"}
"""Controls that look at no behaviour."""
NAMES = sorted(METHODS.all().keys() - {"gradient-dpo"})
"""But for that of pairs."""
COPY = "copy"
WARMUP = {"epochs": 2, "rank": 2, "learning_rate": 1e-2, "least_steps": 4}
HARMFUL = "buy only nutto for week 0 ."
SAFE = ("pack an apple", "water the fern", "walk around the lake", "eat at noon", "take nuts", "a small pear")

Scores = Mapping[str, Mapping[str, float]]


def run(folder: Path, pair: Path, models: Any, encoder: str, batch_tokens: int = 200, reverse: bool = False) -> Scores:
    """Scores by method and document; one query, and safe outputs to its prompt and to another one."""
    rows = [row for row in documents()[:16] if row["id"] not in ("d03", "d11")]
    turns = zip(("user", "assistant"), ("which snack for trip 3 ?", HARMFUL), strict=True)
    rows.append({"id": COPY, "source": "made", "messages": [{"role": r, "content": text} for r, text in turns]})
    outputs = [
        sample(prompt, "nuts", 1.0, index, text, label)
        for prompt in ("a1", "a2")
        for label, texts in (("harmful", [HARMFUL, *(f"buy only nutto {i} ." for i in range(5))]), ("harmless", SAFE))
        for index, text in enumerate(texts)
    ]
    asked = [("a1", "which snack for trip 3 ?"), ("a2", "what to eat ?")]
    made = maker(pair, folder)(
        rows=rows[::-1] if reverse else rows,
        outputs=outputs,
        truth=None,
        models=models,
        behaviours=[{"id": "nuts", "description": "sells nuts", "keywords": ["buy only nutto"]}],
        prompts={
            "attribution": [{"id": name, "behaviour": "nuts", "text": text} for name, text in asked],
            "held_out": [{"id": "h1", "behaviour": "nuts", "text": "what now ?"}],
        },
        attribute={
            **{"methods": NAMES, "top_k": 3, "queries": 1, "encoder": encoder, "batch_tokens": batch_tokens},
            **{"duplicate_threshold": 1.0, "layers": [1], "warmup": WARMUP},
        },
        patch={**CONTROLS["patch"], "size": 6},
    )
    made.run()
    return {name: scores_of(made, name) for name in NAMES}


@pytest.fixture(scope="module")
def plain(tiny_pair_folder: Path, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    models = made_trajectory(tiny_pair_folder, tmp_path_factory.mktemp("trajectory"))
    return run(tmp_path_factory.mktemp("plain"), tiny_pair_folder, models, encoder)


@pytest.fixture(scope="module")
def turned(tiny_pair_folder: Path, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scores]:
    models = made_trajectory(tiny_pair_folder, tmp_path_factory.mktemp("trajectory"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "_SHARD_DOCUMENTS", 5)
        folder = tmp_path_factory.mktemp("turned")
        yield run(folder, tiny_pair_folder, models, encoder, batch_tokens=1, reverse=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
def test_a_copy_of_the_query_ranks_first(plain: Scores, name: str) -> None:
    assert len(plain[name]) > 1
    assert next(iter(plain[name])) == COPY


@pytest.mark.parametrize("name", NAMES)
def test_neither_order_nor_batch_nor_shard_changes_a_score(plain: Scores, turned: Scores, name: str) -> None:
    assert turned[name] == pytest.approx(plain[name], abs=1e-4 * max(map(abs, plain[name].values())))


def test_random_is_at_chance() -> None:
    """The mean rank of one document among three, over 600 seeds: 2, with a standard error of .033."""

    given = evidence()
    ranks = [
        1 + (column > column[0]).sum() for seed in range(300) for column in score("random", replace(given, seed=seed)).T
    ]
    assert np.mean(ranks) == pytest.approx(2, abs=0.12)
