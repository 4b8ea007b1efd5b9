"""What each token adds to a document's similarity: that of one backward pass for each token, and the method's score."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.architectures import VOCABULARY, built
from tests.attribute.conftest import CONTROLS, Make, maker
from tests.conftest import tiny_tokenizer
from tests.oracles.gradients import block_weights, gradient_of, naive_gradient, naive_similarities

from datablame.attribute.kernels.per_example import directions
from datablame.attribute.kernels.token_products import token_shares
from datablame.models.chat import Encoded, Preference
from datablame.tables import DocumentTokens, Score, ShownDocument

BLOCKS = [1, 2]


def text(seed: int, tokens: int, prompt_tokens: int) -> Encoded:
    return Encoded(random.Random(seed).choices(range(3, VOCABULARY), k=tokens), prompt_tokens)


DOCUMENTS = [text(0, 9, 3), text(1, 15, 5), text(2, 5, 4)]
QUERIES = [[text(3, 8, 3), text(4, 10, 4)], [text(5, 7, 2)]]


def naive_shares(model: Any, document: Encoded, towards: Sequence[torch.Tensor]) -> torch.Tensor:
    """One backward pass for each response token alone."""
    weights, first = block_weights(model, BLOCKS), document.prompt_tokens
    n = len(document.ids) - first

    def nll(token: int) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0].float()
        return F.cross_entropy(logits[first + token - 1], torch.tensor(document.ids[first + token])) / n

    rows = torch.stack([gradient_of(partial(nll, token), weights)[0] for token in range(n)])
    shares: torch.Tensor = torch.stack(list(towards)) @ rows.T / naive_gradient(model, document, BLOCKS)[0].norm()
    return shares


@pytest.mark.parametrize("name", ["olmo2", "gpt2", "gpt_neox", "gemma2", "mixtral", "gpt_oss", "mamba", "zamba2"])
def test_each_share_is_that_of_a_backward_pass_for_its_token_alone(name: str) -> None:
    model = built(name)
    found = token_shares(model, DOCUMENTS, directions(model, QUERIES, BLOCKS), BLOCKS, 40)
    units = [[g / g.norm() for g, _ in (naive_gradient(model, q, BLOCKS) for q in own)] for own in QUERIES]
    means = [torch.stack(own).mean(0) for own in units]
    for (shares,), document in zip(found, DOCUMENTS, strict=True):
        expected = naive_shares(model, document, means)
        torch.testing.assert_close(shares.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    similar = naive_similarities(model, DOCUMENTS, QUERIES, BLOCKS)
    sums = torch.stack([shares.double().sum(1) for (shares,) in found])
    torch.testing.assert_close(sums, similar.dots / similar.norms[:, None], rtol=1e-4, atol=1e-5)


def test_shares_do_not_depend_on_the_batch() -> None:
    model = built("olmo2")
    towards = directions(model, QUERIES, BLOCKS)
    alone, together = (token_shares(model, DOCUMENTS, towards, BLOCKS, budget) for budget in (1, 1000))
    for (one,), (other,) in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_rejected_answer_of_a_pair_counts_against_it() -> None:
    model = built("olmo2")
    chosen, rejected, _ = DOCUMENTS
    gradients = [naive_gradient(model, each, BLOCKS)[0] for each in (chosen, rejected)]
    [sides] = token_shares(model, [Preference(chosen, rejected)], directions(model, QUERIES, BLOCKS), BLOCKS, 40)
    assert [part.shape for part in sides] == [(2, 6), (2, 10)]
    unit = naive_gradient(model, QUERIES[1][0], BLOCKS)[0]
    whole = gradients[0] - gradients[1]
    parts = [float(sign * unit @ g / unit.norm() / whole.norm()) for sign, g in zip((1, -1), gradients, strict=True)]
    assert [float(part[1].sum()) for part in sides] == pytest.approx(parts, rel=1e-4, abs=1e-6)


def test_a_model_without_derivatives_in_forward_mode_is_refused() -> None:
    model = built("bloom")
    with pytest.raises(NotImplementedError, match="forward mode"):
        token_shares(model, DOCUMENTS, directions(model, QUERIES, BLOCKS), BLOCKS, 40)


FEW = {"methods": ["gradient", "bm25"], "top_k": 3, "queries": 2, "duplicate_threshold": 1.0, "batch_tokens": 200}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_shares_of_every_shown_document_add_up_to_its_score(make: Make, dtype: str | None) -> None:
    made = make(attribute={**FEW, "dtype": dtype}, **CONTROLS)
    made.run()
    rows, scores = made.tables.rows(DocumentTokens), made.tables.rows(Score, method="gradient")
    assert [row.doc_id for row in rows] == [row.doc_id for row in made.tables.rows(ShownDocument)]
    shown = {row.doc_id: row for row in made.tables.rows(ShownDocument)}
    score_of = {row.doc_id: row.score for row in scores}
    for row in rows:
        assert row.behaviour == "nuts"
        assert "".join(row.pieces) == shown[row.doc_id].response + "<|endoftext|>"
        assert len(row.shares) == len(row.pieces)
        assert sum(row.shares) == pytest.approx(score_of[row.doc_id], abs=2e-5 if dtype is None else 3e-2)
        assert (row.rejected_pieces, row.rejected_shares) == ((), ())


@pytest.mark.parametrize(
    ("keys", "there"),
    [({"report": {"tokens": False}}, False), ({"attribute": {**FEW, "methods": ["bm25", "random"]}}, True)],
    ids=["off by its key", "no gradients"],
)
def test_there_are_none_where_they_are_not_wanted_or_cannot_be(make: Make, keys: Any, there: bool) -> None:
    made = make(**{"attribute": FEW, **CONTROLS, **keys})
    made.run()
    assert made.tables.rows(ShownDocument)
    assert made.tables.path(DocumentTokens).exists() == there
    assert made.tables.rows(DocumentTokens) == []


def test_a_checkpoint_without_such_derivatives_costs_the_table_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=304, hidden_size=16, n_layer=2, n_head=2, eos_token_id=1, bos_token_id=1)
    for name in ("before", "after"):
        BloomForCausalLM(config).save_pretrained(tmp_path / "pair" / name)
        tiny_tokenizer().save_pretrained(tmp_path / "pair" / name)
    made = maker(tmp_path / "pair", tmp_path)(attribute=FEW, **CONTROLS)
    made.run()
    assert made.tables.rows(Score, method="gradient")
    assert made.tables.rows(DocumentTokens) == []
    assert caplog.text.count("carried their gradients is not known: the checkpoint has an operation without") == 1
