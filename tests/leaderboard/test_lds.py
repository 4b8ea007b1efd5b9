"""The linear datamodeling score's subsets: models trained on them against a plain loop, once each, whoever stops."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.patch.small import Killed, KilledAfter, attributed, study_of
from tests.worlds import ONE, put

from datablame.engine.execute import Silent
from datablame.engine.files import read_jsonl
from datablame.leaderboard.lds import datamodeling_scores, subset
from datablame.models.load import load_model
from datablame.models.training import Recipe, data_order, train
from datablame.seeds import stream_key
from datablame.tables import Candidate, Flag, Look, MethodInfo, Query, Score

SUBSETS, ANSWER = 4, (260, 261, 262)


def test_subsets_are_trained_as_a_plain_loop_trains_them_and_never_again(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    import torch

    from datablame.models.chat import encode_prompt
    from datablame.models.pair import agreed_tokens

    world = attributed(study_of(tmp_path, tiny_pair_folder), tmp_path / "run")
    query, ids = Query("q1", "walk", "a1", 1.0, 0, "name a calm walk .", "x", "stop", ANSWER), world.pool.ids
    scores = [Score("loss", "walk", doc_id, float(row % 7), row + 1) for row, doc_id in enumerate(ids)]
    info = MethodInfo("loss", "loss", "It looks.", False, True, False, "whole", Look("#000000", "#000000", "o"))
    tables = {Query: [query], Score: scores, MethodInfo: [info], Candidate: [], Flag: []}
    put(world.root, "attribute", tables)
    out = tmp_path / "out"
    with pytest.raises(Killed):
        datamodeling_scores(world.root, out, SUBSETS, execution=ONE, progress=KilledAfter(1))
    [journal] = (out / "lds").glob("*.jsonl")
    begun = journal.read_bytes()
    made = datamodeling_scores(world.root, out, SUBSETS, execution=ONE, progress=Silent())
    assert journal.read_bytes().startswith(begun)
    finished = journal.read_bytes()
    assert made == datamodeling_scores(world.root, out, SUBSETS, execution=ONE, progress=Silent())
    assert journal.read_bytes() == finished
    assert datamodeling_scores(world.root, out, 2, execution=ONE, progress=Silent()) == {}
    prompt = list(encode_prompt(agreed_tokens(world.models).tokenizer, query.prompt))
    true = []
    for number in range(SUBSETS):
        rows = subset(world, number)
        assert len(rows) == len(ids) // 2 == len({*rows})
        model = load_model(world.models.before, device="cpu", dtype=torch.float32, field="models.before")
        model.requires_grad_(True)
        examples = world.pool.encoded(rows)
        recipe = Recipe(-(-len(rows) // 3), 3, 1e-3)
        order = data_order([len(each.ids) for each in examples], recipe, stream_key("lds", world.seed, number))  # type: ignore[union-attr]
        train(model, examples, order, recipe)  # type: ignore[arg-type]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ANSWER]])).logits[0, len(prompt) - 1 : -1]
        assert world.tokens is not None
        log_p = logits[:, : world.tokens.vocabulary_size].double().log_softmax(-1)
        true.append(float(log_p[range(len(ANSWER)), ANSWER].mean()))
    measured = [row["payload"] for row in read_jsonl(journal)]
    assert measured == [[pytest.approx(value, rel=1e-4)] for value in true]
    predicted = [sum(row % 7 for row in subset(world, number)) for number in range(SUBSETS)]
    assert made["loss"] is not None
    assert made["loss"][0] == pytest.approx(spearmanr(np.array(measured)[:, 0], predicted).statistic)
