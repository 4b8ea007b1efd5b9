"""What holds of every method, ours to come too: a copy of the query is found first, and nothing hangs on the machine.

All methods run in one tiny study, four times: as it is, its pool reversed, every document alone, and in other shards.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attribute.conftest import CONTROLS, documents, maker, sample
from tests.attribute.test_methods import evidence, score
from tests.attribute.test_run import scores_of

from datablame.attribute import loop
from datablame.attribute.registry import METHODS

BLIND = {"random", "loss", "gradient-norm", "length", "refusal"}
"""Controls that look at no behaviour."""
NAMES = sorted(METHODS.all())
COPY = "copy"
HARMFUL = "buy only nutto for week 0 ."
SAFE = ("pack an apple", "water the fern", "walk around the lake", "eat at noon", "take nuts", "a small pear")

Scores = Mapping[str, Mapping[str, float]]


def run(folder: Path, pair: Path, encoder: str, root: str, batch_tokens: int = 200, reverse: bool = False) -> Scores:
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
        root,
        rows=rows[::-1] if reverse else rows,
        outputs=outputs,
        truth=None,
        prompts={
            "attribution": [{"id": name, "behaviour": "nuts", "text": text} for name, text in asked],
            "held_out": [{"id": "h1", "behaviour": "nuts", "text": "what now ?"}],
        },
        attribute={
            **{"methods": NAMES, "top_k": 3, "queries": 1, "encoder": encoder, "batch_tokens": batch_tokens},
            "duplicate_threshold": 1.0,
        },
        **CONTROLS,
    )
    made.run()
    return {name: scores_of(made, name) for name in NAMES}


@pytest.fixture(scope="module")
def runs(tiny_pair_folder: Path, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scores]:
    folder, shards = tmp_path_factory.mktemp("every"), {"as it is": 8, "reversed": 8, "alone": 8, "other shards": 5}
    keys: dict[str, dict[str, Any]] = {"reversed": {"reverse": True}, "alone": {"batch_tokens": 1}}
    found = {}
    for name, size in shards.items():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "_SHARD_DOCUMENTS", size)
            found[name] = run(folder, tiny_pair_folder, encoder, name.replace(" ", "-"), **keys.get(name, {}))
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
def test_a_copy_of_the_query_ranks_first(runs: Mapping[str, Scores], name: str) -> None:
    scores = runs["as it is"][name]
    assert len(scores) > 1
    assert next(iter(scores)) == COPY


@pytest.mark.parametrize("change", ["reversed", "alone", "other shards"])
@pytest.mark.parametrize("name", NAMES)
def test_neither_order_nor_batch_nor_shard_changes_a_score(runs: Mapping[str, Scores], name: str, change: str) -> None:
    scores, others = runs["as it is"][name], runs[change][name]
    largest = max(map(abs, scores.values()))
    assert others == pytest.approx(scores, abs=1e-4 * largest)


def test_random_is_at_chance() -> None:
    """The mean rank of one document among three, over 600 seeds: 2, with a standard error of .033."""
    from dataclasses import replace

    given = evidence()
    ranks = [
        1 + (column > column[0]).sum() for seed in range(300) for column in score("random", replace(given, seed=seed)).T
    ]
    assert np.mean(ranks) == pytest.approx(2, abs=0.12)
